package supervise

import (
	"slices"
	"testing"
	"time"

	"github.com/moby/moby/api/types/container"
)

// TestDecide has the rows of Decide's table, and the limits of on-failure.
func TestDecide(t *testing.T) {
	on := func(name container.RestartPolicyMode, max int) container.RestartPolicy {
		return container.RestartPolicy{Name: name, MaximumRetryCount: max}
	}
	failed, done := End{Code: 1}, End{}
	byHand := End{Code: 137, Stopped: true}
	found, foundByHand := End{Code: 137, Found: true}, End{Code: 137, Found: true, Stopped: true}
	noStart := End{Code: 127, NoStart: true}
	for _, tt := range []struct {
		policy   container.RestartPolicy
		end      End
		restarts int
		again    bool
	}{
		{on("", 0), failed, 0, false},
		{on("no", 0), failed, 0, false},
		{on("no", 0), found, 0, false},
		{on("always", 0), done, 0, true},
		{on("always", 0), failed, 100, true},
		{on("always", 0), byHand, 0, false},
		{on("always", 0), found, 0, true},
		{on("always", 0), foundByHand, 0, true},
		{on("always", 0), noStart, 0, false},
		{on("always", 0), End{Code: 127, NoStart: true, Found: true}, 0, true},
		{on("unless-stopped", 0), done, 0, true},
		{on("unless-stopped", 0), byHand, 0, false},
		{on("unless-stopped", 0), found, 0, true},
		{on("unless-stopped", 0), foundByHand, 0, false},
		{on("on-failure", 0), done, 0, false},
		{on("on-failure", 0), failed, 100, true},
		{on("on-failure", 0), byHand, 0, false},
		{on("on-failure", 0), found, 0, true},
		{on("on-failure", 0), foundByHand, 0, false},
		{on("on-failure", 3), failed, 2, true},
		{on("on-failure", 3), failed, 3, false},
		{on("on-failure", 3), noStart, 0, false},
	} {
		if _, again := Decide(tt.policy, tt.end, tt.restarts, 0); again != tt.again {
			t.Errorf("%v, %+v, %d restarts: %v", tt.policy, tt.end, tt.restarts, again)
		}
	}
}

func TestPauses(t *testing.T) {
	always := container.RestartPolicy{Name: "always"}
	var got []time.Duration
	var pause time.Duration
	for range 12 {
		pause, _ = Decide(always, End{Ran: time.Second}, 0, pause)
		got = append(got, pause)
	}
	ms := time.Millisecond
	want := []time.Duration{100 * ms, 200 * ms, 400 * ms, 800 * ms, 1600 * ms, 3200 * ms, 6400 * ms, 12800 * ms, 25600 * ms, 51200 * ms, time.Minute, time.Minute}
	if !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	if pause, _ = Decide(always, End{Ran: 10 * time.Second}, 0, time.Minute); pause != 100*ms {
		t.Errorf("after a run that lasted: %v", pause)
	}
}

func TestCheckOf(t *testing.T) {
	for _, tt := range []struct {
		name    string
		config  *container.HealthConfig
		shell   []string
		command []string
	}{
		{"none given", nil, nil, nil},
		{"inherited from nothing", &container.HealthConfig{Interval: time.Second}, nil, nil},
		{"taken away", &container.HealthConfig{Test: []string{"NONE"}}, nil, nil},
		{"program", &container.HealthConfig{Test: []string{"CMD", "a", "b"}}, nil, []string{"a", "b"}},
		{"line", &container.HealthConfig{Test: []string{"CMD-SHELL", "a | b"}}, nil, []string{"/bin/sh", "-c", "a | b"}},
		{"line for the image's shell", &container.HealthConfig{Test: []string{"CMD-SHELL", "a"}}, []string{"bash", "-ec"}, []string{"bash", "-ec", "a"}},
	} {
		check, ok := CheckOf(tt.config, tt.shell)
		if ok != (tt.command != nil) || !slices.Equal(check.Command, tt.command) {
			t.Errorf("%s: %v, %v", tt.name, check, ok)
		}
	}
	check, _ := CheckOf(&container.HealthConfig{Test: []string{"CMD", "a"}, Interval: time.Second}, nil)
	if check.Interval != time.Second || check.Timeout != 30*time.Second || check.StartInterval != 5*time.Second || check.StartPeriod != 0 || check.Retries != 3 {
		t.Errorf("completed: %+v", check)
	}
}

func TestValidate(t *testing.T) {
	test := []string{"CMD", "a"}
	for _, good := range []*container.HealthConfig{nil, {}, {Test: test}, {Test: test, Interval: time.Millisecond, Retries: 5}, {Test: []string{"NONE"}}} {
		if err := Validate(good); err != nil {
			t.Errorf("%+v: %v", good, err)
		}
	}
	for _, bad := range []*container.HealthConfig{{Test: []string{"a"}}, {Test: test, Interval: 3}, {Test: test, Timeout: -1}, {StartPeriod: 1}, {StartInterval: 1}, {Retries: -1}} {
		if Validate(bad) == nil {
			t.Errorf("%+v is taken", bad)
		}
	}
}

func TestNext(t *testing.T) {
	check := Check{Retries: 2, Interval: 30 * time.Second, StartPeriod: time.Minute, StartInterval: time.Second}
	const early, late = time.Second, time.Hour
	for _, tt := range []struct {
		status  container.HealthStatus
		streak  int
		code    int
		up      time.Duration
		want    container.HealthStatus
		streak2 int
	}{
		{"starting", 0, 0, early, "healthy", 0},
		{"starting", 0, 1, early, "starting", 0},
		{"starting", 0, 1, late, "starting", 1},
		{"starting", 1, 1, late, "unhealthy", 2},
		{"healthy", 0, 1, early, "healthy", 1},
		{"healthy", 1, -1, late, "unhealthy", 2},
		{"unhealthy", 2, 1, late, "unhealthy", 3},
		{"unhealthy", 3, 0, late, "healthy", 0},
	} {
		got := check.Next(container.Health{Status: tt.status, FailingStreak: tt.streak}, container.HealthcheckResult{ExitCode: tt.code}, tt.up)
		if got.Status != tt.want || got.FailingStreak != tt.streak2 || len(got.Log) != 1 {
			t.Errorf("%+v: %+v", tt, got)
		}
	}
	var h container.Health
	for code := range 7 {
		h = check.Next(h, container.HealthcheckResult{ExitCode: code}, late)
	}
	if len(h.Log) != 5 || h.Log[0].ExitCode != 2 || h.Log[4].ExitCode != 6 {
		t.Errorf("the log has %d, the first %+v", len(h.Log), h.Log[0])
	}
	for _, tt := range []struct {
		up     time.Duration
		status container.HealthStatus
		want   time.Duration
	}{{early, "starting", time.Second}, {early, "healthy", 30 * time.Second}, {late, "starting", 30 * time.Second}} {
		if got := check.Wait(tt.up, tt.status); got != tt.want {
			t.Errorf("wait at %v, %s: %v", tt.up, tt.status, got)
		}
	}
}
