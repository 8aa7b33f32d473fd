package supervise

import (
	"slices"
	"time"

	"github.com/moby/moby/api/types/container"

	"github.com/ferryos/ferry/internal/fault"
)

// What a health check does that leaves it open: Docker's defaults.
const (
	defaultInterval      = 30 * time.Second
	defaultTimeout       = 30 * time.Second
	defaultStartInterval = 5 * time.Second
	defaultRetries       = 3
)

// keptResults is how many results inspect shows, maxOutput how many bytes of
// the output of each.
const (
	keptResults = 5
	maxOutput   = 4096
)

// Check is a container's health check with nothing left open.
type Check struct {
	Command       []string
	Interval      time.Duration
	Timeout       time.Duration
	StartPeriod   time.Duration
	StartInterval time.Duration
	Retries       int
}

// CheckOf completes a health check; false if there is none. shell is the
// image's, for checks written as a line.
func CheckOf(c *container.HealthConfig, shell []string) (Check, bool) {
	if c == nil || len(c.Test) == 0 {
		return Check{}, false
	}
	check := Check{Interval: c.Interval, Timeout: c.Timeout, StartPeriod: c.StartPeriod, StartInterval: c.StartInterval, Retries: c.Retries}
	switch c.Test[0] {
	case "CMD":
		check.Command = c.Test[1:]
	case "CMD-SHELL":
		if len(shell) == 0 {
			shell = []string{"/bin/sh", "-c"}
		}
		check.Command = slices.Concat(shell, c.Test[1:])
	}
	if len(check.Command) == 0 { // NONE
		return Check{}, false
	}
	for value, standard := range map[*time.Duration]time.Duration{
		&check.Interval: defaultInterval, &check.Timeout: defaultTimeout, &check.StartInterval: defaultStartInterval,
	} {
		if *value == 0 {
			*value = standard
		}
	}
	if check.Retries == 0 {
		check.Retries = defaultRetries
	}
	return check, true
}

// Validate refuses a health check that cannot be meant.
func Validate(c *container.HealthConfig) error {
	if c == nil {
		return nil
	}
	if len(c.Test) > 0 && !slices.Contains([]string{"NONE", "CMD", "CMD-SHELL"}, c.Test[0]) {
		return fault.New(fault.Invalid, "unknown type %q of health check", c.Test[0]).Hint("begin it with CMD, CMD-SHELL or NONE")
	}
	for _, d := range []struct {
		name  string
		value time.Duration
	}{{"Interval", c.Interval}, {"Timeout", c.Timeout}, {"StartPeriod", c.StartPeriod}, {"StartInterval", c.StartInterval}} {
		if d.value != 0 && d.value < container.MinimumDuration {
			return fault.New(fault.Invalid, "%s in Healthcheck cannot be less than %v", d.name, container.MinimumDuration)
		}
	}
	if c.Retries < 0 {
		return fault.New(fault.Invalid, "Retries in Healthcheck cannot be negative")
	}
	return nil
}

// Wait is how long to wait for the next check of a container that has been up
// so long.
func (c Check) Wait(up time.Duration, status container.HealthStatus) time.Duration {
	if up < c.StartPeriod && status == container.Starting {
		return c.StartInterval
	}
	return c.Interval
}

// Next is a container's health after one more result, up being how long it ran
// when the check began.
//
//	status              check         becomes
//	any                 succeeds      healthy, streak 0
//	starting, up < StartPeriod  fails starting, the streak stays
//	any other           fails         streak+1; unhealthy from Retries on
func (c Check) Next(h container.Health, r container.HealthcheckResult, up time.Duration) container.Health {
	h.Log = append(slices.Clone(h.Log), &r)
	h.Log = h.Log[max(len(h.Log)-keptResults, 0):]
	switch {
	case r.ExitCode == 0:
		h.Status, h.FailingStreak = container.Healthy, 0
	case h.Status == container.Starting && up < c.StartPeriod:
	default:
		if h.FailingStreak++; h.FailingStreak >= c.Retries {
			h.Status = container.Unhealthy
		}
	}
	return h
}
