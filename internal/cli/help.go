package cli

import "github.com/spf13/cobra"

// helpTopics are texts that `ferry help TOPIC` prints.
func helpTopics() []*cobra.Command {
	return []*cobra.Command{
		{Use: "exit-codes", Short: "What ferry's exit codes mean", Long: `ferry exits with

  0     success
  1     the operation failed
  2     the command line, the configuration or another input is wrong
  4     not permitted: not root, or a credential was refused
  5     not found: no such container, image, pod, …
  6     not available now: Ferry is not running, or something it needs is not reachable
  130   interrupted with Ctrl-C

and ferry run and ferry exec, besides 2 for a wrong command line, with

  N     the exit code of the program in the container; 128+S if signal S ended it
  125   Ferry could not create or reach the container
  126   the program in the container cannot be executed
  127   the program is not in the container

ferry doctor exits with 1 if it has found an error.`},
		{Use: "environment", Short: "The environment variables that ferry reads", Long: `ferry reads

  FERRY_CONFIG   the configuration file, in place of /etc/ferry/config.yaml
  KUBECONFIG     the files with the Kubernetes contexts; ferry up writes the context to
                 the first of them, ~/.kube/config if it is not set
  NO_COLOR       set to anything: no colours
  TERM           "dumb": no colours and no redrawn lines`},
	}
}
