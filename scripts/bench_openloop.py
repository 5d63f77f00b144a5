"""A load that comes at its own times, however slowly it is answered, as users do; `wrk` asks again only when it has been
answered, and so hides what a stall costs those behind it (coordinated omission). One thread over one epoll.

Latencies count from the time that a request was due, also when it had to wait here for a free connection."""

import collections
import gc
import re
import select
import socket
import time

DUE, SENT, DONE = 2, 3, 4


def head(address, path, token):
    return f"GET {path} HTTP/1.1\r\nHost: {address}\r\nAuthorization: {token}\r\n\r\n".encode()


def ended(data):
    """Whether a whole answer is there, and whether the server keeps the connection."""
    end = data.find(b"\r\n\r\n")
    if end < 0:
        return False, True
    fields = data[:end + 2].lower()
    keep = b"\r\nconnection: close" not in fields
    at = fields.find(b"\r\ncontent-length:")
    if at >= 0:
        return len(data) >= end + 4 + int(fields[at + 17:fields.index(b"\r\n", at + 17)]), keep
    if b"\r\ntransfer-encoding: chunked" in fields:
        return data.endswith(b"\r\n0\r\n\r\n"), keep
    return True, keep


class Load:
    """Requests over at most so many connections. `answers` are tuples: kind, status (0: the connection broke), due, sent,
    done; `codes` has one of pocketfleet's error codes for each status."""

    def __init__(self, address, connections):
        host, port = address.rsplit(":", 1)
        self.address, self.limit = (host, int(port)), connections
        self.epoll = select.epoll()
        self.idle, self.busy, self.open = [], {}, 0
        self.answers, self.codes, self.unsent = [], {}, 0

    def connect(self):
        connection = socket.create_connection(self.address, timeout=10)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setblocking(False)
        self.epoll.register(connection, select.EPOLLIN)
        self.open += 1
        return connection

    def drop(self, connection):
        self.epoll.unregister(connection)
        connection.close()
        self.open -= 1

    def send(self, request, clock):
        kind, due, text = request
        connection = self.idle.pop() if self.idle else self.connect()
        started = clock()
        try:
            connection.send(text)
        except OSError:
            # Closed while it was idle; nobody can have acted on the request.
            self.drop(connection)
            connection = self.connect()
            connection.send(text)
        self.busy[connection.fileno()] = [connection, kind, due, started, b""]

    def receive(self, descriptor, clock):
        entry = self.busy.get(descriptor)
        if entry is None:
            for connection in self.idle:
                if connection.fileno() == descriptor:
                    self.idle.remove(connection)
                    self.drop(connection)
                    break
            return
        connection, kind, due, started, before = entry
        try:
            data = connection.recv(1 << 16)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.answers.append((kind, 0, due, started, clock()))
            del self.busy[descriptor]
            self.drop(connection)
            return
        data = before + data if before else data
        whole, keep = ended(data)
        if not whole:
            entry[4] = data
            return
        status = int(data[9:12])
        self.answers.append((kind, status, due, started, clock()))
        if status != 200 and status not in self.codes:
            code = re.search(rb'"code": ?"?(\w+)', data)
            self.codes[status] = code[1].decode() if code else ""
        del self.busy[descriptor]
        if keep:
            self.idle.append(connection)
        else:
            self.drop(connection)

    def run(self, plan, seconds, patience=15.0, ready=0):
        """Sends `plan`, (kind, due, bytes) in the order of the due times, for so many seconds, and then waits for the
        answers. So many connections are made before."""
        self.idle += [self.connect() for _ in range(ready - self.open)]
        plan = iter(plan)
        upcoming = next(plan, None)
        began = time.perf_counter()
        clock = lambda: time.perf_counter() - began
        gc.disable()
        try:
            while (now := clock()) < seconds + patience and (self.busy or (upcoming and now < seconds)):
                while upcoming and upcoming[1] <= (now := clock()) < seconds and (self.idle or self.open < self.limit):
                    self.send(upcoming, clock)
                    upcoming = next(plan, None)
                # An epoll waits for whole milliseconds; a select on it for microseconds.
                pause = 0.05
                if upcoming and now < seconds and (self.idle or self.open < self.limit):
                    pause = min(max(upcoming[1] - clock(), 0), 0.05)
                select.select([self.epoll], [], [], pause)
                for descriptor, _ in self.epoll.poll(0, 512):
                    self.receive(descriptor, clock)
        finally:
            gc.enable()
        while upcoming and upcoming[1] < seconds and upcoming[1] > 0:
            self.unsent += 1
            upcoming = next(plan, None)
        return self.answers

    def close(self):
        """Ends all connections; returns how many requests were never answered."""
        for entry in self.busy.values():
            entry[0].close()
        for connection in self.idle:
            connection.close()
        self.epoll.close()
        return len(self.busy)


def statuses(answers):
    return dict(collections.Counter(answer[1] for answer in answers))
