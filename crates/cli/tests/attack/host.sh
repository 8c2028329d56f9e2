# Plays a host of its own for one command: processes, mounts, network and names that are no one
# else's, with secrets in it. What gets out of a sandbox without defences meets this and no more.
set -eu
mount -t proc proc /proc
ip link set lo up
# So that there is an address outside a sandbox that has no network.
ip address add 10.0.0.1/32 dev lo
mount -t tmpfs -o mode=755 host /srv
mkdir -m 700 /srv/.written
mkdir -m 1777 /srv/tmp
for part in etc usr; do
  mkdir -p "/srv/.written/$part/upper" "/srv/.written/$part/work"
  mount -t overlay -o "lowerdir=/$part,upperdir=/srv/.written/$part/upper,workdir=/srv/.written/$part/work" \
    overlay "/$part"
done
mount -t tmpfs -o mode=755 host /home
mkdir /home/somebody
echo '-----BEGIN OPENSSH PRIVATE KEY-----' >/home/somebody/id_ed25519
printf '[global]\n' >/etc/pip.conf
# shellcheck disable=SC2016
echo 'somebody:$y$j9T$notasecret$notasecret:20000:0:99999:7:::' >/etc/shadow
chmod 640 /etc/shadow
"$@"
