"""Takes what `wandb sync` uploads, as far as the client needs answers to go on, and writes it down: W&B's own server cannot be installed from PyPI.

Prints its port, then a JSON object a line for each upload: {"run": variables of the mutation} or {"rows": history rows}.
"""

import http.server
import json
import sys
import threading

BUCKET = {
    "id": "QnVja2V0", "name": "run", "displayName": "run", "description": "", "config": "{}", "sweepName": None, "historyLineCount": 0,
    "project": {"id": "P", "name": "project", "entity": {"id": "E", "name": "me"}},
}


LINES = threading.Lock()


def say(value):
    with LINES:
        sys.stdout.write(json.dumps(value) + "\n")
        sys.stdout.flush()


class Handler(http.server.BaseHTTPRequestHandler):
    def do(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        answer = {}
        if self.path == "/graphql":
            asked = json.loads(body)
            data = {}
            if "upsertBucket" in asked["query"]:
                say({"run": asked["variables"]})
                data = {"upsertBucket": {"bucket": BUCKET, "inserted": True}}
            elif "createRunFiles" in asked["query"]:
                url = f"http://127.0.0.1:{server.server_address[1]}/upload"
                files = [{"name": name, "uploadUrl": url} for name in asked["variables"]["files"]]
                data = {"createRunFiles": {"runID": "run", "uploadHeaders": [], "files": files}}
            elif "viewer" in asked["query"].lower():
                data = {"viewer": {"id": "V", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}}}
            answer = {"data": data}
        elif self.path.endswith("/file_stream"):
            history = json.loads(body).get("files", {}).get("wandb-history.jsonl", {})
            say({"rows": [json.loads(row) for row in history.get("content", [])]})
        text = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    do_GET = do_POST = do_PUT = do

    def log_message(self, *_):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
say(server.server_address[1])
server.serve_forever()
