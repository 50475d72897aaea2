#!/usr/bin/env python3
"""bad_server.py DIR PORT-FILE [TLS-CERT]: serves DIR on 127.0.0.1, each first part of a path naming what is wrong with the server:

  /fine/...          nothing
  /drop/...          the connection ends after 60000 bytes of every answer
  /stall/...         the first answer (of .fhead) stops half-way and says nothing more; later ones are fine
  /silent/...        says nothing at all for anything but index.json
  /noranges/...      ranges are ignored, and the connection drops half-way the first three times (of .fhead)
  /wrongrange/...    206 with other bytes than were asked for, the first time
  /longer/...        Content-Length is one more than the file has (of .fhead)
  /shorter/...       Content-Length is one less
  /endless/...       no Content-Length, and bytes without end (of .fhead)
  /swapped/...       the right size and other bytes (of .fhead)
  /error/...         500 to every second request (of .fhead)
  /gone/...          404 for .fhead
  /loop/...          redirects to itself for ever
  /hops/N/...        N redirects, then the file
  /scheme/...        redirects to ftp://
  /away/...          redirects to http:// on another machine
  /huge/...          an index.json without end

TLS-CERT: a PEM file with certificate and key: https instead."""
import collections
import http.server
import os
import socketserver
import ssl
import sys
import time

root, port_file = sys.argv[1], sys.argv[2]
asked = collections.Counter()


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def head(self, code, length=None, **more):
        self.send_response(code)
        if length is None:
            self.close_connection = True
            self.send_header("Connection", "close")
        else:
            self.send_header("Content-Length", str(length))
        for k, v in more.items():
            self.send_header(k.replace("_", "-"), v)
        self.end_headers()

    def redirect(self, to):
        self.head(302, 0, Location=to)

    def do_GET(self):
        asked[self.path] += 1
        try:
            self.answer(*self.path.lstrip("/").split("/", 1))
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def answer(self, mode, rest=""):
        if mode == "loop":
            return self.redirect(self.path)
        if mode == "hops":
            n, rest = rest.split("/", 1)
            return self.redirect(f"/hops/{int(n) - 1}/{rest}" if int(n) > 1 else f"/fine/{rest}")
        if mode == "scheme":
            return self.redirect("ftp://127.0.0.1/" + rest)
        if mode == "away":
            return self.redirect("http://192.0.2.1/" + rest)
        if mode == "huge" and rest == "index.json":
            self.head(200)
            while True:
                self.wfile.write(b" " * 65536)
        path = os.path.join(root, rest)
        if not os.path.isfile(path) or (mode == "gone" and rest.endswith(".fhead")):
            return self.head(404, 0)
        if mode == "silent" and rest != "index.json":
            time.sleep(20)
            self.close_connection = True
            return None
        with open(path, "rb") as f:
            data = f.read()
        large = rest.endswith(".fhead")
        first = asked[self.path] == 1
        if mode == "error" and large and asked[self.path] % 2 == 1:
            return self.head(500, 0)
        if mode == "swapped" and large:
            data = bytes(b ^ 1 for b in data)
        start, code, more = 0, 200, {}
        wanted = self.headers.get("Range")
        if wanted and mode != "noranges":
            start = int(wanted.split("=")[1].split("-")[0])
            code, more = 206, {"Content_Range": f"bytes {start}-{len(data) - 1}/{len(data)}"}
            if mode == "wrongrange" and asked[self.path] == 2:
                start, more = 0, {"Content_Range": f"bytes 0-{len(data) - 1}/{len(data)}"}
        body = data[start:]
        if mode == "endless" and large:
            self.head(200)
            while True:
                self.wfile.write(data)
        if mode in ("longer", "shorter") and large:
            self.head(code, len(body) + (1 if mode == "longer" else -1), **more)
            self.wfile.write(body)
            self.close_connection = True
            return None
        self.head(code, len(body), **more)
        if mode == "drop" or (mode == "wrongrange" and first):
            self.wfile.write(body[:60000])
            self.close_connection = len(body) > 60000
        elif mode == "noranges" and large and asked[self.path] < 4:
            self.wfile.write(body[:len(body) // 2])
            self.close_connection = True
        elif mode == "stall" and first and large:
            self.wfile.write(body[:len(body) // 2])
            self.wfile.flush()
            time.sleep(20)
            self.close_connection = True
        else:
            self.wfile.write(body)
        return None


class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    daemon_threads = True


server = Server(("127.0.0.1", 0), Handler)
if len(sys.argv) > 3:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(sys.argv[3])
    server.socket = context.wrap_socket(server.socket, server_side=True)
with open(port_file + ".new", "w", encoding="ascii") as f:
    f.write(str(server.server_port))
os.rename(port_file + ".new", port_file)
server.serve_forever()
