#!/usr/bin/env bash
# Makes a machine of this process, the first of a pid namespace, with namespaces of its own for the rest: machine.sh ROLE NAME KEEP...
#
# Its /tmp, /run and /dev/shm are empty and vanish with it; so is the admin's home. A host's is the directory of its name in the
# admin's /run/homes: a host of the same name that is started later finds it. Each directory KEEP stays where it is, also
# beneath those.
# ROLE admin: stays until stdin ends, and with it every process of the namespace. ROLE host: an sshd that lets in who has
# the key of $AUTHORIZED_KEY, as the user "ubuntu" of local.yaml, who is root here.
set -eu
role=$1 name=$2
shift 2

private() { # DIRECTORY MODE HOME KEEP...; HOME: what DIRECTORY shows, else it is empty
  local directory=$1 mode=$2 home=$3 keep fd
  local -A kept=()
  shift 3
  for keep; do
    [[ $keep/ == $directory/* ]] || continue
    exec {fd}<"$keep"
    kept[$keep]=$fd
  done
  if [[ $home ]]; then mount --bind "$home" "$directory"; else mount -t tmpfs -o "mode=$mode" private "$directory"; fi
  for keep in "${!kept[@]}"; do
    mkdir -p "$keep"
    mount --no-canonicalize --rbind "/proc/self/fd/${kept[$keep]}" "$keep"
    exec {kept[$keep]}<&-
  done
}

mount --make-rprivate /
hostname "$name"
home=
if [[ $role == host ]]; then home=/run/homes/$name && mkdir -p "$home"; fi
private /root 700 "$home" "$@"
for each in /tmp:1777 /run:755 /dev/shm:1777; do private "${each%:*}" "${each#*:}" '' "$@"; done
{ echo 'ubuntu:x:0:0::/root:/bin/bash' && cat /etc/passwd; } >/run/passwd
mount --bind /run/passwd /etc/passwd
# There is no name server: who asks is told so at once.
printf '%s\n' '127.0.0.1 localhost' '10.0.0.254 admin' '10.0.0.1 head' '10.0.0.2 worker' >/run/hosts
mount --bind /run/hosts /etc/hosts
mount --bind /dev/null /etc/resolv.conf
ip link set lo up
mkdir -p -m 700 /root/.ssh /run/sshd

if [[ $role == admin ]]; then
  ip link add bridge address 02:00:00:00:00:fe type bridge # its own: else it is one of a port, and changes when that is cut
  ip address add 10.0.0.254/24 dev bridge
  ip link set bridge up
  echo 1 >/proc/sys/net/ipv4/ip_forward # nowhere, but whoever tries hears that at once
  ssh-keygen -q -t ed25519 -N '' -C '' -f /root/.ssh/id_ed25519
  echo 'StrictHostKeyChecking accept-new' >/root/.ssh/config
  echo ready
  read -r || true
else
  echo "$AUTHORIZED_KEY" >/run/sshd/authorized_keys
  ssh-keygen -q -t ed25519 -N '' -f /run/sshd/host_key
  printf '%s\n' 'HostKey /run/sshd/host_key' 'AuthorizedKeysFile /run/sshd/authorized_keys' 'PidFile none' 'UsePAM no' \
    'StrictModes no' 'PermitRootLogin yes' 'PasswordAuthentication no' 'MaxStartups 100' 'MaxSessions 100' >/run/sshd/config
  echo ready
  exec /usr/sbin/sshd -D -E /run/sshd/log -f /run/sshd/config
fi
