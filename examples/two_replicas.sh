#!/usr/bin/env bash
# Two replicas of one model on one machine, behind nginx: one address, one store.
#
#   bash examples/two_replicas.sh MODEL STORE [OPTIONS OF VLLM]
#   bash examples/two_replicas.sh smollm2-135m prompts --max-model-len 2048
#
# Needs nginx and foreword[vllm]. The address is http://127.0.0.1:8000, or $PORT; Ctrl-C ends all.
set -euo pipefail
model=$1 store=$2
shift 2
port=${PORT:-8000}
work=$(mktemp -d)
started=()

finish() {
  kill "${started[@]}" 2>/dev/null || true
  wait
  rm -rf "$work"
}
trap finish EXIT
trap 'exit 0' INT TERM

for replica in $((port + 1)) $((port + 2)); do
  foreword serve "$model" --prompts "$store" --engine vllm --port "$replica" --served-name base \
    -- "$@" > "$work/$replica.log" 2>&1 &
  started+=($!)
  # One after the other: starting takes more memory than running.
  until curl --silent --fail --output /dev/null "http://127.0.0.1:$replica/health"; do
    kill -0 "${started[-1]}" 2>/dev/null || { tail -n 30 "$work/$replica.log" >&2; exit 1; }
    sleep 1
  done
  echo "replica at $replica"
done

cat > "$work/nginx.conf" <<CONF
daemon off;
pid $work/pid;
error_log stderr;
events {}
http {
  access_log off;
  client_body_temp_path $work/body;
  proxy_temp_path $work/proxy;
  fastcgi_temp_path $work/fastcgi;
  uwsgi_temp_path $work/uwsgi;
  scgi_temp_path $work/scgi;
  upstream replicas {
    least_conn;
    server 127.0.0.1:$((port + 1)) max_fails=1 fail_timeout=5s;
    server 127.0.0.1:$((port + 2)) max_fails=1 fail_timeout=5s;
  }
  server {
    listen 127.0.0.1:$port;
    client_max_body_size 2m;
    location / {
      proxy_pass http://replicas;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_set_header Host \$host;
      proxy_buffering off;                          # streams arrive as they are made
      proxy_read_timeout 600s;
      # A replica that is gone or full: the other one. A request that was taken on is not repeated.
      proxy_next_upstream error timeout http_503;
    }
  }
}
CONF
nginx -c "$work/nginx.conf" -e stderr &
started+=($!)
echo "both at http://127.0.0.1:$port"
wait "${started[-1]}"  # a replica that dies leaves its work to the other
