#!/usr/bin/env python3
"""A client of a sandbox's keeper, with nothing but Python's standard library.

    keeper_client.py STATE.JSON COMMAND [ARGUMENT...]

Runs a command in the sandbox whose state.json this is: the steps of docs/keeper-protocol.md, one
after the other. Standard input is the command's; its code is this program's.
"""
import json
import os
import socket
import struct
import sys
import threading

REQUEST, RESPONSE = 1, 2
SERVICE = "nelly.sandbox.v1.Sandbox"


def varint(number):
    """A number as protobuf writes it."""
    parts = bytearray()
    while number > 0x7F:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes(parts + bytes([number]))


def message(*fields):
    """A protobuf message of (field, value): numbers, truths, text, bytes. What is empty is left out."""
    out = b""
    for field, value in fields:
        if isinstance(value, int):
            out += varint(field << 3) + varint(value) if value else b""
        else:
            data = value.encode() if isinstance(value, str) else value
            out += varint(field << 3 | 2) + varint(len(data)) + data if data else b""
    return out


def fields(data):
    """The fields of a protobuf message: the last value of each. Unknown ones are there, too, and
    nobody asks for them: that is what keeps a client working with a newer keeper.
    """
    found, at = {}, 0

    def number():
        nonlocal at
        value, shift = 0, 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(data):
        key = number()
        if key & 7 == 0:
            found[key >> 3] = number()
        elif key & 7 == 2:
            length = number()
            found[key >> 3] = data[at : at + length]
            at += length
        else:
            at += {1: 8, 5: 4}[key & 7]
    return found


def text(value):
    """A field of text, absent or not."""
    return (value or b"").decode()


class Keeper:
    """A connection to the socket `control`, with one call at a time."""

    def __init__(self, runtime_dir):
        self.runtime_dir = runtime_dir
        self.control = self.connect("control")
        self.calls = 0
        # 1. Greet it: another major version is refused.
        hello = self.call("Hello", message((1, 1), (2, "example")))
        self.sandbox = text(hello.get(3))

    def connect(self, name):
        """A socket of the keeper's. Its path may be longer than an address can be (107 bytes), so it
        is reached through its directory.
        """
        directory = os.open(self.runtime_dir, os.O_PATH | os.O_DIRECTORY)
        try:
            connection = socket.socket(socket.AF_UNIX)
            connection.connect(f"/proc/self/fd/{directory}/{name}")
        finally:
            os.close(directory)
        return connection

    def call(self, method, payload):
        """One ttrpc call: ten bytes before each message, and a stream id of its own, which is odd."""
        self.calls += 1
        stream = 2 * self.calls - 1
        request = message((1, SERVICE), (2, method), (3, payload))
        self.control.sendall(struct.pack(">IIBB", len(request), stream, REQUEST, 0) + request)
        while True:
            length, answered, kind, _ = struct.unpack(">IIBB", self.exactly(10))
            answer = fields(self.exactly(length))
            if (answered, kind) == (stream, RESPONSE):
                break
        status = fields(answer.get(1, b""))
        if status.get(1, 0):
            raise RuntimeError(f"{method}: {text(status.get(2))} (code {status[1]})")
        return fields(answer.get(2, b""))

    def exactly(self, count):
        """So many bytes of the connection."""
        data = b""
        while len(data) < count:
            part = self.control.recv(count - len(data))
            if not part:
                raise ConnectionError("the keeper closed the connection")
            data += part
        return data

    def claim(self, token):
        """Shows a token to the socket `stream`. Returns the connection, which proves that this client
        lives, and the streams: standard input, output, error, each None if there is none.
        """
        connection = self.connect("stream")
        connection.sendall(token)
        which, descriptors, _, _ = socket.recv_fds(connection, 1, 3)
        if not which or not which[0]:
            raise RuntimeError("the keeper does not know the token")
        given = iter(descriptors)
        streams = [socket.socket(fileno=next(given)) if which[0] & bit else None for bit in (1, 2, 4)]
        for stream in filter(None, streams):
            stream.setblocking(True)
        return connection, streams


def copied(stream, to):
    """A thread that copies what a stream says to a file, to its end."""

    def copy():
        while data := stream.recv(1 << 16):
            to.write(data)
            to.flush()

    thread = threading.Thread(target=copy)
    thread.start()
    return thread


def main():
    """Runs a command."""
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    with open(sys.argv[1], encoding="utf-8") as file:
        state = json.load(file)
    if state["schema"] != 1 or not state.get("runtime_dir"):
        sys.exit(f"{sys.argv[1]}: the sandbox does not run, or is of another version")
    keeper = Keeper(state["runtime_dir"])
    # 2. Start the process, with an input.
    words = b"".join(message((1, word)) for word in sys.argv[2:])
    started = keeper.call("Exec", words + message((6, 1)))
    if 3 in started:
        failure = fields(started[3])
        print(text(failure.get(3)), file=sys.stderr)
        sys.exit(failure[1])
    exec_id = text(started[1])
    # 3. Claim its streams. The connection stays open until the end: closing it ends the process.
    alive, (stdin, stdout, stderr) = keeper.claim(started[2])
    threads = [copied(stdout, sys.stdout.buffer), copied(stderr, sys.stderr.buffer)]
    try:
        stdin.sendall(sys.stdin.buffer.read())
        stdin.shutdown(socket.SHUT_WR)
    except OSError:
        # A process that does not read its input.
        pass
    # 4. Wait for its end, and for the rest of its output.
    ended = keeper.call("Wait", message((1, exec_id)))
    for thread in threads:
        thread.join()
    alive.close()
    sys.exit(ended.get(1, 0))


if __name__ == "__main__":
    main()
