"""The proxies that the scenario `warm` compares with, set up alike: two threads or workers, connections to PocketBase
kept alive, TCP_NODELAY (the default of all of them), bodies streamed, no access log, no compression.

nginx is the measure and has to be there; HAProxy and Caddy are left out where they are missing. HAProxy comes a second
time: checking the token's signature and time, as pocketfleet does for every request and the others do for none. The
nginx and Caddy of Debian have nothing that does. nginx comes a second time as well, with batch threads (`SCHED_BATCH`), as
pocketfleet's workers are under load.
"""

import itertools
import os
import re
import subprocess

import bench_kit as kit

# Without the two lines about buffering, nginx would write bodies of a megabyte to files first.
NGINX = """
worker_processes 2; daemon off; pid {temp}/nginx-{number}.pid; error_log {temp}/nginx-error.log;
events {{ worker_connections 4096; }}
http {{
  access_log off; keepalive_requests 1000000; tcp_nodelay on; client_max_body_size 16m;
  client_body_temp_path {temp}/n1; proxy_temp_path {temp}/n2; fastcgi_temp_path {temp}/n3;
  uwsgi_temp_path {temp}/n4; scgi_temp_path {temp}/n5;
  upstream pocketbase {{ server {upstream}; keepalive 256; keepalive_requests 1000000; }}
  server {{
    listen {listen};
    location / {{
      proxy_pass http://pocketbase; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_set_header Host $host; proxy_set_header X-Forwarded-For $remote_addr;
      proxy_request_buffering off; proxy_max_temp_file_size 0;
    }}
  }}
}}
"""

HAPROXY = """
global
  nbthread 2
  maxconn 4096
defaults
  mode http
  timeout connect 10s
  timeout client 60s
  timeout server 60s
  option forwardfor
frontend all
  bind {listen}
{check}  default_backend pocketbase
backend pocketbase
  http-reuse always
  server pocketbase {upstream} maxconn 4096
"""

CHECK = """  http-request deny deny_status 401 unless {{ req.hdr(authorization),jwt_verify("HS256","{key}") -m int 1 }}
  http-request set-var(txn.now) date()
  http-request deny deny_status 401 unless {{ req.hdr(authorization),jwt_payload_query('$.exp','int'),sub(txn.now) -m int gt 0 }}
"""

# Caddy would ask PocketBase for gzip of its own accord.
CADDY = """
{{
  admin off
  auto_https off
  log {{
    level ERROR
  }}
}}
http://{listen} {{
  bind 127.0.0.1
  reverse_proxy {upstream} {{
    transport http {{
      compression off
      keepalive 120s
      keepalive_idle_conns_per_host 256
    }}
  }}
}}
"""

# The second ones.
CHECKING = "haproxy, checking the token"
BATCH = "nginx, batch threads"


class Peer:
    numbers = itertools.count()

    def __init__(self, bench, name, upstream, command, config, env=None, **values):
        self.bench, self.name = bench, name
        self.listen = f"127.0.0.1:{kit.free_port()}"
        # Caddy can tell the language of its configuration by the name of the file only.
        plain = re.sub(r"[^a-z]+", "-", name.lower())
        self.log, file = f"{plain}.log", bench.temp / f"{plain}.conf"
        number = next(Peer.numbers)
        file.write_text(config.format(temp=bench.temp, listen=self.listen, upstream=upstream, number=number, **values))
        self.process = bench.start([*command, file], self.log, env={**os.environ, **(env or {})})

    def ready(self, path, token):
        def answers():
            if self.process.poll() is not None:
                kit.fail(f"{self.name} ended: {(self.bench.temp / self.log).read_text()[-500:]}")
            return kit.Client(self.listen, token).call("GET", path)

        kit.eventually(f"{self.name} answers", answers)
        self.pids = [self.process.pid, *kit.children_of(self.process.pid)]

    def stop(self):
        self.bench.stop(self.process)


def nginx(bench, name, upstream, prefix=()):
    return Peer(bench, name, upstream, [*prefix, kit.which("nginx"), "-p", bench.temp, "-c"], NGINX)


def start(bench, upstream, path, token, key):
    """Starts what there is; returns the peers by name. `key` is what tokens are signed with."""
    peers = {"nginx": nginx(bench, "nginx", upstream)}
    chrt = [kit.which("chrt"), "--batch", "0"]
    if chrt[0] and subprocess.run([*chrt, "true"], capture_output=True, timeout=10).returncode == 0:
        peers[BATCH] = nginx(bench, BATCH, upstream, chrt)
    else:
        kit.say(f"warm: chrt is missing, or not allowed; {BATCH} is left out")
    if haproxy := kit.which("haproxy"):
        for name, check in (("haproxy", ""), (CHECKING, CHECK.format(key=key))):
            peers[name] = Peer(bench, name, upstream, [haproxy, "-db", "-q", "-f"], HAPROXY, check=check)
    if caddy := kit.which("caddy"):
        env = {"GOMAXPROCS": "2", "HOME": str(bench.temp), "XDG_DATA_HOME": str(bench.temp), "XDG_CONFIG_HOME": str(bench.temp)}
        command = [caddy, "run", "--adapter", "caddyfile", "--config"]
        peers["caddy"] = Peer(bench, "caddy", upstream, command, CADDY, env)
    for name in ("haproxy", "caddy"):
        if name not in peers:
            kit.say(f"warm: {name} is missing and left out; on Debian and Ubuntu: apt-get install -y {name}")
    for peer in peers.values():
        peer.ready(path, token)
    return peers
