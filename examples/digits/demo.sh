#!/usr/bin/env bash
# From a Dockerfile to a served model. Every command is echoed as it runs; all
# of them are ones that a user would type. The last line is RESULT {json}.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

begin=$(date +%s%3N)
times=""
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# say prints a heading and starts the clock of a step.
say() { printf '\n\033[1m# %s\033[0m\n' "$1"; step=$2; since=$(date +%s%3N); }
# took ends the step.
took() { times+="${times:+,}\"$step\":$(($(date +%s%3N) - since))"; }
# run echoes a command, quoted so that it can be copied, and runs it.
run() {
  local word line='$'
  for word in "$@"; do
    if [[ $word == *[![:alnum:]_./:=,@%+-]* ]]; then line+=" '$word'"; else line+=" $word"; fi
  done
  printf '%s\n' "$line"
  "$@"
}
kube() { run kubectl --context ferry "$@"; }

if [[ -n ${NO_COLOR:-} || ! -t 1 ]]; then
  say() { printf '\n# %s\n' "$1"; step=$2; since=$(date +%s%3N); }
fi

# digest prints what a finished training Job left in its termination log.
digest() {
  kubectl --context ferry get pods -l "batch.kubernetes.io/job-name=$1" \
    -o 'jsonpath={.items[0].status.containerStatuses[0].state.terminated.message}'
}

# train applies a file with a Job, shows its log and waits for its end.
train() {
  kube apply -f "$2"
  run ferry logs -f "job/$1"
  kube wait --for=condition=complete --timeout=60s "job/$1"
}

say "Start the platform" up
run ferry up
took

say "Take away what an earlier run of this demo made: a Job runs once" clean
kube delete --ignore-not-found --wait -f train.yaml -f train-v2.yaml -f serve.yaml
kube delete --ignore-not-found configmap digits-image
took

say "Build an image: the runtime and a data set" build
run ferry build -t digits:v1 --iidfile "$scratch/image-id" .
took

say "Run it as a container" run
run ferry run --rm digits:v1
took

say "Train a network in a Job; it pushes the model to the registry" train
kube create configmap digits-image --from-file="digest=$scratch/image-id"
train digits-train train.yaml
model=$(digest digits-train)
echo "model $model, made by image $(cat "$scratch/image-id")"
took

say "Serve the model from the registry with two replicas" serve
kube apply -f serve.yaml
kube rollout status deployment/digits --timeout=60s
took

say "Predict held-out digits through the Service" predict
ip=$(kubectl --context ferry get service digits -o 'jsonpath={.spec.clusterIP}')
run curl -sS --fail --retry 5 --retry-all-errors --retry-delay 1 "http://$ip:8080/v2/models/digits"
run ferry run --rm digits:v1 predict --data /data --url "http://$ip:8080" --name digits --draw 4 --json | tee "$scratch/answers"
accuracy=$(tail -n 1 "$scratch/answers" | sed -n 's/.*"accuracy":\([0-9.]*\).*/\1/p')
took

say "Train a second version and roll it out" update
train digits-train-v2 train-v2.yaml
kube patch deployment digits --type=json -p '[
  {"op": "replace", "path": "/spec/template/spec/volumes/0/image/reference", "value": "localhost:5000/models/digits:v2"},
  {"op": "replace", "path": "/spec/template/spec/containers/0/env/0/value", "value": "v2"}]'
kube rollout status deployment/digits --timeout=60s
run curl -sS --fail --retry 5 --retry-all-errors --retry-delay 1 "http://$ip:8080/v2/models/digits/versions/v2/ready"
took

say "Scale it, and go back to the first version" rollback
kube scale deployment/digits --replicas=3
kube rollout status deployment/digits --timeout=60s
kube rollout undo deployment/digits
kube rollout status deployment/digits --timeout=60s
run curl -sS --fail --retry 5 --retry-all-errors --retry-delay 1 "http://$ip:8080/v2/models/digits/versions/v1/ready"
took

total=$(($(date +%s%3N) - begin))
printf '\nRESULT {"accuracy":%s,"model":"%s","milliseconds":{%s,"total":%d}}\n' "$accuracy" "$model" "$times" "$total"
