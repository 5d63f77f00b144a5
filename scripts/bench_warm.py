"""The scenario `warm` of scripts/bench."""

import statistics

import bench_kit as kit

NGINX = """
worker_processes 2; daemon off; pid {temp}/nginx.pid; error_log {temp}/nginx-error.log;
events {{ worker_connections 1024; }}
http {{
  access_log off; keepalive_requests 1000000; tcp_nodelay on;
  client_body_temp_path {temp}/n1; proxy_temp_path {temp}/n2; fastcgi_temp_path {temp}/n3;
  uwsgi_temp_path {temp}/n4; scgi_temp_path {temp}/n5;
  upstream pocketbase {{ server {upstream}; keepalive 128; keepalive_requests 1000000; }}
  server {{
    listen {listen};
    location / {{
      proxy_pass http://pocketbase; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_set_header Host $host; proxy_set_header X-Forwarded-For $remote_addr;
    }}
  }}
}}
"""


def warm(bench):
    fleet, tenant, token, copy, bare_token, record = kit.prepared(bench, "warm")
    bare_process, bare, _ = bench.bare_until_answer(copy, record, bare_token)
    listen = f"127.0.0.1:{kit.free_port()}"
    config = bench.temp / "nginx.conf"
    config.write_text(NGINX.format(temp=bench.temp, upstream=bare, listen=listen))
    nginx = bench.start([kit.which("nginx"), "-c", config, "-p", bench.temp], "nginx.log")
    kit.eventually("nginx answers", lambda: kit.Client(listen, bare_token).call("GET", record))
    workers = [nginx.pid, *kit.children_of(nginx.pid)]
    targets = {
        "direct": (bare, bare_token, []),
        "nginx": (listen, bare_token, workers),
        "pocketfleet": (fleet.address, token, [fleet.process.pid]),
    }
    requests = {"record": record, "list of 10": "/api/collections/notes/records?perPage=10&skipTotal=1"}
    rounds, seconds = (1, 1) if bench.quick else (5, 2)
    results = {}
    for name, path in requests.items():
        for address, its_token, _ in targets.values():
            kit.wrk(address, path, its_token, 16, 1)
        for connections in (1, 16, 64):
            runs = {target: [] for target in targets}
            for _ in range(rounds):
                for target in kit.shuffled(targets):
                    address, its_token, pids = targets[target]
                    before = kit.cpu_seconds(pids)
                    run = kit.wrk(address, path, its_token, connections, seconds)
                    run["cpu_us"] = (kit.cpu_seconds(pids) - before) * 1e6 / run["requests"]
                    runs[target].append(run)
            middle = lambda target, key: statistics.median(run[key] for run in runs[target])
            results[f"{name}, {connections}"] = {
                target: {
                    **{key: round(middle(target, key), 3) for key in ("rate", "p50", "p99", "cpu_us")},
                    "vs_nginx": round(statistics.median(a["rate"] / b["rate"] for a, b in zip(runs[target], runs["nginx"])), 3),
                }
                for target in targets
            }
    bench.stop(nginx)
    bench.stop(bare_process)
    fleet.stop()
    return results


def warm_report(found):
    rows = []
    for name, targets in found.items():
        for target, r in targets.items():
            cpu = "–" if target == "direct" else f"{r['cpu_us']:.0f}"
            rows.append([name, target, f"{r['rate']:,.0f}", f"{r['vs_nginx']:.2f}×", f"{r['p50'] * 1000:,.0f}",
                         f"{r['p99'] * 1000:,.0f}", cpu])
    return ["### A warm request, proxied\n\nThe same PocketBase data direct, behind nginx and behind pocketfleet; `wrk` "
            "with one thread on the same machine. CPU is the proxy's own, per request.\n",
            kit.table(["GET, connections", "through", "requests/s", "of nginx", "p50 µs", "p99 µs", "CPU µs"], rows)]
