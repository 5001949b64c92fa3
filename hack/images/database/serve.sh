#!/bin/sh
# Says `ready` once the server answers a query, then waits for it. Its socket lies in /tmp: no port, no clash.
set -e
cd /tmp
bin=$(echo /usr/lib/postgresql/*/bin)
runuser -u postgres -- "$bin/pg_ctl" -D /srv/data -l /tmp/log -w -o "-c listen_addresses= -c unix_socket_directories=/tmp" start >/dev/null
runuser -u postgres -- psql -h /tmp -At -c 'select 1' >/dev/null
echo ready
exec sleep infinity
