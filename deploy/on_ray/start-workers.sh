#!/usr/bin/env bash
# Start one supervised `worker join` for each accelerator of this machine, or one on its cores.
#
#   start-workers.sh CLOUD REGION COORDINATOR FIRST_PORT [OPTION...]     OPTIONs go to `worker join`
#
# Started again it leaves running workers alone. Needs ~/isthmus/venv and ~/isthmus/token.
set -euo pipefail

cloud=$1 region=$2 coordinator=$3 first_port=$4
shift 4
home=$HOME/isthmus
bin=${ISTHMUS_BIN:-$home/venv/bin}
metadata=http://169.254.169.254

# The address that machines of other regions reach this one at, as its cloud's metadata service has it.
public_address() {
  case $cloud in
    aws)
      local key
      key=$(curl -sfm 5 -X PUT "$metadata/latest/api/token" -H 'X-aws-ec2-metadata-token-ttl-seconds: 60')
      curl -sfm 5 -H "X-aws-ec2-metadata-token: $key" "$metadata/latest/meta-data/public-ipv4" ;;
    gcp)
      curl -sfm 5 -H 'Metadata-Flavor: Google' \
        "$metadata/computeMetadata/v1/instance/network-interfaces/0/access-configs/0/external-ip" ;;
    azure)
      curl -sfm 5 -H 'Metadata: true' --noproxy '*' \
        "$metadata/metadata/instance/network/interface/0/ipv4/ipAddress/0/publicIpAddress?api-version=2021-02-01&format=text" ;;
    local)
      hostname -I | cut -d' ' -f1 ;;
  esac
}

address=${ISTHMUS_ADDRESS_HERE:-$(public_address || true)}
if [ -z "$address" ]; then
  echo "start-workers: found no public address of this $cloud machine; required one that the other regions" \
    "reach, or ISTHMUS_ADDRESS_HERE" >&2
  exit 1
fi

devices=$(nvidia-smi -L 2>/dev/null | wc -l || true)
data=()
[ -d "$home/data" ] && data=(--data-dir "$home/data")
for i in $(seq 0 $((devices > 0 ? devices - 1 : 0))); do
  device=cpu
  [ "$devices" -gt 0 ] && device=cuda:$i
  port=$((first_port + i))
  name=$region-$(hostname -s)-$i
  "$bin/deploy" supervise "$name" --detach --log "$home/logs/$name.log" -- \
    "$bin/worker" join "$coordinator" --token-file "$home/token" --name "$name" --region "$region" \
    --device "$device" --bind "0.0.0.0:$port" --advertise "$address:$port" \
    --state-dir "$home/state/$i" --join-timeout 600 "${data[@]}" "$@"
done
