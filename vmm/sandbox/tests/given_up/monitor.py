"""A monitor that somebody else has taken over: it does its work up to a stage, says half a word there, and stays.

With "gone-" before the stage it ends there instead, and whoever took it over keeps all its descriptors for as long as its holder has its own.

It writes its number into the file `mark` then, and into `mark` with a 2 behind it once its holder has taken back what was asked last.
"""

import os
import select
import signal
import socket
import struct
import sys

stage, mark, agent = sys.argv[1:4]
gone, stage = stage.startswith("gone-"), stage.removeprefix("gone-")
control = socket.socket(fileno=0)


def request():
    """The descriptors of the next request, whatever it is: the first is the answer's."""
    head, descriptors, _, _ = socket.recv_fds(control, 4, 16)
    (left,) = struct.unpack("<I", head)
    while left:
        left -= len(control.recv(left))
    return descriptors


def answer(descriptors, word=b'"done"', stream=None):
    frame = struct.pack("<I", len(word)) + word
    socket.send_fds(socket.socket(fileno=descriptors[0]), [frame], [stream.fileno()] if stream else [])


def tell(path):
    with open(path + ".new", "w") as file:
        file.write(str(os.getpid()))
    os.rename(path + ".new", path)


def stay(*asked):
    """Says half an answer to each that was asked, and stays."""
    for descriptors in asked:
        os.write(descriptors[0], b"\x06\0")
    if gone and os.fork() == 0:
        poll = select.poll()
        poll.register(start[1], 0)
        poll.poll()
        os._exit(0)
    tell(mark)
    if gone:
        os._exit(0)
    for descriptors in asked:
        poll = select.poll()
        poll.register(descriptors[0], 0)
        poll.poll()
    if asked:
        tell(mark + "2")
    while True:
        signal.pause()


start = request()
if stage == "start":
    stay(start)
if stage == "ended":
    answer(start, b'"ended"')
    stay()
answer(start)
listen = request()
if stage == "listen":
    stay(listen)
answer(listen)
if stage == "ready":
    stay()
ours, theirs = socket.socketpair()
socket.send_fds(socket.socket(fileno=listen[1]), [bytes(8)], [theirs.fileno()])
if stage == "word":
    stay()
ours.send(b"r")
connect = request()
if stage == "connect":
    stay(connect)
if stage == "hello":
    answer(connect, stream=theirs)
    stay()
guest = socket.socket(socket.AF_UNIX)
guest.connect(agent)
answer(connect, stream=guest)
stay(*[request() for _ in range(3 if stage == "exec" else 1)])
