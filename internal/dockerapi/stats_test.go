package dockerapi_test

import (
	"encoding/json"
	"io"
	"testing"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"
)

func TestStats(t *testing.T) {
	a := newAPI(t)
	ctx := t.Context()
	s := shell("echo ready; while :; do :; done")
	s.name, s.host.Memory = "busy", 64<<20
	pids := int64(20)
	s.host.PidsLimit = &pids
	id := a.up(s)
	a.awaitOutput(id, "ready")
	samples := func(opt client.ContainerStatsOptions, n int) []container.StatsResponse {
		t.Helper()
		res, err := a.ContainerStats(ctx, "busy", opt)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		var out []container.StatsResponse
		dec := json.NewDecoder(res.Body)
		for range n {
			var v container.StatsResponse
			if err := dec.Decode(&v); err != nil {
				t.Fatal(err)
			}
			out = append(out, v)
		}
		if rest, err := io.ReadAll(dec.Buffered()); !opt.Stream && (err != nil || len(rest) > 1) {
			t.Errorf("after what was asked for: %q, %v", rest, err)
		}
		return out
	}
	one := samples(client.ContainerStatsOptions{}, 1)[0]
	if one.ID != id || one.Name != "/busy" || one.OSType != "linux" || one.Read.IsZero() || !one.PreRead.IsZero() || one.PreCPUStats.SystemUsage != 0 ||
		one.CPUStats.CPUUsage.TotalUsage == 0 || one.CPUStats.SystemUsage == 0 || one.CPUStats.OnlineCPUs == 0 ||
		one.MemoryStats.Usage == 0 || one.MemoryStats.Limit != 64<<20 || len(one.MemoryStats.Stats) == 0 ||
		one.PidsStats.Current != 1 || one.PidsStats.Limit != 20 {
		t.Errorf("%+v", one)
	}
	if eth, ok := one.Networks["eth0"]; !ok || eth.TxPackets+eth.RxPackets == 0 {
		t.Errorf("networks: %+v", one.Networks)
	}
	two := samples(client.ContainerStatsOptions{IncludePreviousSample: true}, 1)[0]
	stream := samples(client.ContainerStatsOptions{Stream: true}, 2)
	for _, v := range []container.StatsResponse{two, stream[1]} {
		used, all := v.CPUStats.CPUUsage.TotalUsage-v.PreCPUStats.CPUUsage.TotalUsage, v.CPUStats.SystemUsage-v.PreCPUStats.SystemUsage
		if v.PreRead.IsZero() || used == 0 || all == 0 || used > all {
			t.Errorf("used %d of %d since %v", used, all, v.PreRead)
		}
	}
	if _, err := a.ContainerStop(ctx, id, client.ContainerStopOptions{Timeout: seconds(0)}); err != nil {
		t.Fatal(err)
	}
	if v := samples(client.ContainerStatsOptions{IncludePreviousSample: true}, 1)[0]; v.ID != id || !v.Read.IsZero() || v.MemoryStats.Usage != 0 {
		t.Errorf("of one that does not run: %+v", v)
	}
	if got := a.do("GET", "/containers/busy/stats?stream=1&one-shot=1", ""); got.status != 400 {
		t.Errorf("%+v", got)
	}
}
