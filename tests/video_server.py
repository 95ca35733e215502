"""A server of videos on this machine, for yt-dlp and ffmpeg."""

import http.server
import re
import time
from pathlib import Path

TYPES = {".mp4": "video/mp4", ".mpd": "application/dash+xml", ".m3u8": "application/vnd.apple.mpegurl"}  # by suffix


class Server(http.server.ThreadingHTTPServer):
    """Serves <folder>/<id>.mp4, and files of other TYPES, with byte ranges, which ffmpeg needs to seek.

    `answers` overrides the responses for an id, or for ffmpeg's requests alone with the key `<id>/media`: a list of statuses,
    or of functions that write a response, one for each request. Once the list is used up, the file is served as usual.
    """

    def __init__(self, folder):
        self.folder, self.answers, self.headers, self.requests = folder, {}, {}, []
        super().__init__(("127.0.0.1", 0), Handler)
        self.url_template = f"http://127.0.0.1:{self.server_port}/{{}}.mp4"

    def handle_error(self, *_):
        return  # a client has disconnected


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        server, name = self.server, Path(self.path).stem
        by_ffmpeg = "Lavf" in self.headers.get("User-Agent", "") or self.headers.get("Icy-MetaData") is not None
        server.requests.append((name, "ffmpeg" if by_ffmpeg else "yt-dlp", dict(self.headers), time.monotonic()))
        answers = server.answers.get(f"{name}/media" if by_ffmpeg else name) or server.answers.get(name, [])
        answer = answers.pop(0) if answers and (by_ffmpeg or f"{name}/media" not in server.answers) else None
        path = server.folder / Path(self.path).name
        if callable(answer):
            answer(self, path)
        elif answer or not path.is_file():
            self.send_response(answer or 404)
            for header in server.headers.items():
                self.send_header(*header)
            self.send_header("Content-Length", "0")
            self.end_headers()
        else:
            self.send_range(path.read_bytes(), type=TYPES[path.suffix])

    do_HEAD = do_GET

    def send_range(self, content, length=None, type=TYPES[".mp4"]):
        """Send the requested range, or only its first `length` bytes."""
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        first, last = (int(asked[1]), int(asked[2] or len(content) - 1)) if asked else (0, len(content) - 1)
        last = min(last, len(content) - 1)
        self.send_response(206 if asked else 200)
        self.send_header("Content-Type", type)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(last + 1 - first))
        if asked:
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content[first : last + 1][:length])

    def log_message(self, *_):
        return
