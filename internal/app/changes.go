package app

import (
	"encoding/json"
	"io"

	"github.com/ferryos/ferry/internal/engine/network"
	"github.com/ferryos/ferry/internal/kube"
)

// changes prints what Ferry has changed on the machine, as JSON.
func changes(stdout, stderr io.Writer) error {
	cfg, log, err := setUp(stderr)
	if err != nil {
		return err
	}
	p, err := newEngineParts(cfg, 0, log)
	if err != nil {
		return err
	}
	list, err := p.network.Changes()
	if err != nil {
		return err
	}
	for _, c := range kube.Changes(kubeOptions(cfg, log)) {
		list = append(list, network.Change{Kind: network.ChangeKind(c.Kind), Name: c.Name})
	}
	return json.NewEncoder(stdout).Encode(list)
}
