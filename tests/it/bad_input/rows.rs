//! The rows that need no awake instance: number of the list, what it is, the bytes, the answers that are fine.

use super::NOTES;

/// One request that no well-behaved client sends.
pub(crate) struct Row {
    pub number: u8,
    pub what: String,
    pub bytes: Vec<u8>,
    /// Statuses that are fine; 0 is a connection closed without a word.
    pub fine: Vec<u16>,
    /// Nobody can tell where the next request would begin.
    pub closes: bool,
}

/// A row by its request line and headers, with `Host: x` where `head` has no `Host`.
fn row(number: u8, what: &str, bytes: impl Into<Vec<u8>>, fine: &[u16], closes: bool) -> Row {
    Row { number, what: what.to_owned(), bytes: bytes.into(), fine: fine.to_vec(), closes }
}

fn post(headers: &str, body: &str) -> String {
    format!(
        "POST {NOTES} HTTP/1.1\r\nHost: x\r\nAuthorization: TOKEN\r\nContent-Type: application/json\r\n{headers}\r\n\r\n{body}"
    )
}

fn get(path: &str, headers: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: TOKEN\r\n{headers}\r\n")
}

fn bare(line: &str, headers: &str) -> String {
    format!("{line}\r\n{headers}\r\n")
}

/// All of them; `TOKEN` stands for a valid token.
pub(crate) fn all() -> Vec<Row> {
    let mut rows = framing();
    rows.extend(heads());
    rows.extend(hosts());
    rows.extend(lines());
    rows.extend(bodies());
    rows.extend(forms());
    rows.extend(paths());
    rows.extend(identities());
    rows
}

fn framing() -> Vec<Row> {
    let mut rows = Vec::new();
    let chunked = "Transfer-Encoding: chunked";
    for (number, what, headers, body) in [
        (1, "CL then TE", "Content-Length: 5\r\nTransfer-Encoding: chunked", "0\r\n\r\n"),
        (1, "TE then CL", "Transfer-Encoding: chunked\r\nContent-Length: 5", "0\r\n\r\n"),
        (1, "CL 0 and TE", "Content-Length: 0\r\nTransfer-Encoding: chunked", "0\r\n\r\n"),
        (2, "two equal CL", "Content-Length: 2\r\nContent-Length: 2", "{}"),
        (2, "two different CL", "Content-Length: 2\r\nContent-Length: 3", "{}x"),
        (3, "CL list of equals", "Content-Length: 2, 2", "{}"),
        (3, "CL list", "Content-Length: 2, 3", "{}x"),
        (4, "CL +3", "Content-Length: +2", "{}"),
        (5, "CL -1", "Content-Length: -1", ""),
        (6, "CL 0x3", "Content-Length: 0x2", "{}"),
        (6, "CL 2e0", "Content-Length: 2e0", "{}"),
        (7, "CL 2^64", "Content-Length: 18446744073709551616", "{}"),
        (7, "CL empty", "Content-Length: ", "{}"),
        (7, "CL with a space inside", "Content-Length: 1 2", "{}"),
        (8, "TE xchunked", "Transfer-Encoding: xchunked", "0\r\n\r\n"),
        (8, "TE identity", "Transfer-Encoding: identity", "{}"),
        (8, "TE gzip", "Transfer-Encoding: gzip", "{}"),
        (8, "TE chunked, identity", "Transfer-Encoding: chunked, identity", "0\r\n\r\n"),
        (8, "TE with a vertical tab", "Transfer-Encoding: \u{b}chunked", "0\r\n\r\n"),
        (9, "TE twice", "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", "0\r\n\r\n"),
        (9, "TE gzip, chunked", "Transfer-Encoding: gzip, chunked", "0\r\n\r\n"),
        (9, "TE chunked, chunked", "Transfer-Encoding: chunked, chunked", "0\r\n\r\n"),
        (10, "space before the colon of TE", "Transfer-Encoding : chunked", "0\r\n\r\n"),
        (10, "space before the colon of CL", "Content-Length : 2", "{}"),
        (12, "obs-fold", "X: a\r\n b\r\nContent-Length: 2", "{}"),
        (12, "obs-fold of TE", "Transfer-Encoding:\r\n chunked", "0\r\n\r\n"),
        (13, "bare CR in a value", "X: a\rb\r\nContent-Length: 2", "{}"),
        (13, "bare CR before TE", "X: a\rTransfer-Encoding: chunked\r\nContent-Length: 2", "{}"),
    ] {
        // What hyper refuses in its parser has no body to say it in.
        rows.push(row(number, what, post(headers, body), &[400], true));
    }
    let old = format!("POST {NOTES} HTTP/1.0\r\nHost: x\r\n{chunked}\r\n\r\n0\r\n\r\n");
    rows.push(row(11, "TE on 1.0", old, &[400], true));
    for (number, what, body) in [
        (33, "chunk size beyond 64 bits", "fffffffffffffffff\r\n{}\r\n0\r\n\r\n".to_owned()),
        (33, "chunk size -2", "-2\r\n{}\r\n0\r\n\r\n".to_owned()),
        (33, "chunk size 0x2", "0x2\r\n{}\r\n0\r\n\r\n".to_owned()),
        (33, "chunk size empty", "\r\n{}\r\n0\r\n\r\n".to_owned()),
        (33, "chunk longer than said", "2\r\n{}x\r\n0\r\n\r\n".to_owned()),
        (34, "chunk extension of 20 KB", format!("2;{}\r\n{{}}\r\n0\r\n\r\n", "e".repeat(20_000))),
        (34, "trailers of 200 KB", format!("2\r\n{{}}\r\n0\r\n{}\r\n", "T: 1\r\n".repeat(33_000))),
    ] {
        // Our own route, so that no instance is woken for the sound head.
        let head =
            format!("POST /auth/login HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n{chunked}\r\n\r\n");
        rows.push(row(number, what, head + &body, &[400], number == 33));
    }
    rows
}

fn heads() -> Vec<Row> {
    let mut rows = Vec::new();
    for (number, what, header) in [
        (14, "NUL in a value", "X: a\0b\r\n"),
        (14, "NUL in a name", "X\0: a\r\n"),
        (14, "control character", "X: a\u{1}b\r\n"),
        (14, "DEL", "X: a\u{7f}b\r\n"),
        (15, "empty name", ": x\r\n"),
        (15, "no colon", "X\r\n"),
        (16, "space in a name", "A B: x\r\n"),
        (16, "space before the colon", "A : x\r\n"),
        (16, "tab before a name", "\tA: x\r\n"),
        (16, "a name in umlauts", "Ä: x\r\n"),
    ] {
        rows.push(row(number, what, get(NOTES, header), &[400], true));
    }
    rows.push(row(28, "150 headers", get(NOTES, &"X: 1\r\n".repeat(150)), &[431], true));
    rows.push(row(29, "header of 2 MB", get(NOTES, &format!("X: {}\r\n", "a".repeat(2_000_000))), &[431], true));
    rows.push(row(29, "name of 70 KB", get(NOTES, &format!("{}: 1\r\n", "a".repeat(70_000))), &[400, 431], true));
    rows.push(row(30, "Expect junk", get(NOTES, "Expect: junk\r\n"), &[417], false));
    rows.push(row(30, "Expect more than is known", get(NOTES, "Expect: 100-continue, junk\r\n"), &[417], false));
    let upgrade = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n";
    // RFC 9110 7.8: an upgrade that is not taken is ignored.
    rows.push(row(31, "Upgrade h2c", bare("GET /health HTTP/1.1", &format!("Host: x\r\n{upgrade}")), &[200], false));
    rows.push(row(
        31,
        "Upgrade to junk",
        bare("GET /health HTTP/1.1", "Host: x\r\nConnection: upgrade\r\nUpgrade: junk\r\n"),
        &[200],
        false,
    ));
    rows
}

fn hosts() -> Vec<Row> {
    let mut rows = vec![
        row(17, "no Host", bare(&format!("GET {NOTES} HTTP/1.1"), "Authorization: TOKEN\r\n"), &[400], false),
        row(17, "no Host on 1.0", bare(&format!("GET {NOTES} HTTP/1.0"), "Authorization: TOKEN\r\n"), &[400], true),
        row(17, "empty Host", bare("GET /health HTTP/1.1", "Host: \r\n"), &[400], false),
        row(18, "two Hosts", bare("GET /health HTTP/1.1", "Host: a\r\nHost: b\r\n"), &[400], false),
        row(18, "two equal Hosts", bare("GET /health HTTP/1.1", "Host: a\r\nHost: a\r\n"), &[400], false),
    ];
    let long = "a".repeat(300);
    for host in [
        "a/b",
        "a@b",
        ":80",
        "a:",
        "a:0",
        "a:65536",
        "a:+80",
        "a:8 0",
        "a b",
        "a,b",
        "a;b",
        "a\\b",
        "a?b",
        "a#b",
        "a%2e",
        "[::1",
        "::1",
        "[x]",
        "[::1]x",
        "[fe80::1%25eth0]",
        "http://a",
        "é",
        "*",
        "<script>",
        &long,
    ] {
        rows.push(row(
            19,
            &format!("Host {host:.20}"),
            bare("GET /health HTTP/1.1", &format!("Host: {host}\r\n")),
            &[400],
            false,
        ));
    }
    for host in ["a.example.", "A.EXAMPLE", "xn--e1afmkfd.example", "[::1]", "[::1]:80", "127.0.0.1", "a_b"] {
        rows.push(row(
            19,
            &format!("Host {host}"),
            bare("GET /health HTTP/1.1", &format!("Host: {host}\r\n")),
            &[200],
            false,
        ));
    }
    rows
}

fn lines() -> Vec<Row> {
    let to = |line: &str| bare(line, "Host: x\r\nAuthorization: TOKEN\r\n");
    vec![
        row(20, "absolute form of another host", to(&format!("GET http://evil{NOTES} HTTP/1.1")), &[400], false),
        row(20, "absolute form of another port", to(&format!("GET http://x:81{NOTES} HTTP/1.1")), &[400], false),
        row(20, "absolute form with user info", to(&format!("GET http://u@x{NOTES} HTTP/1.1")), &[400], false),
        row(20, "absolute form without a path", to("GET http://evil HTTP/1.1"), &[400], false),
        row(20, "another scheme", to("GET file:///etc/passwd HTTP/1.1"), &[400], true),
        row(21, "CONNECT", bare("CONNECT evil:443 HTTP/1.1", "Host: evil:443\r\n"), &[405], false),
        row(21, "CONNECT with a path", to("CONNECT /health HTTP/1.1"), &[400, 405], false),
        row(22, "TRACE", to("TRACE /health HTTP/1.1"), &[405], false),
        row(22, "TRACK", to("TRACK /health HTTP/1.1"), &[405], false),
        row(23, "method get", to("get /health HTTP/1.1"), &[405], false),
        row(23, "method Get", to("Get /health HTTP/1.1"), &[405], false),
        row(23, "method with a slash", to("G/T /health HTTP/1.1"), &[400], true),
        row(23, "method of 10 KB", to(&format!("{} /health HTTP/1.1", "M".repeat(10_000))), &[400, 405], false),
        row(24, "OPTIONS *", to("OPTIONS * HTTP/1.1"), &[400], false),
        row(25, "HTTP/1.2", to("GET /health HTTP/1.2"), &[400, 505], true),
        row(25, "HTTP/0.9", "GET /health\r\n", &[400], true),
        row(25, "HTTP/2.0 without a preface", to("GET /health HTTP/2.0"), &[0, 400, 505], true),
        row(25, "HTTP/11", to("GET /health HTTP/11"), &[400], true),
        row(25, "http/1.1", to("GET /health http/1.1"), &[400], true),
        row(25, "two spaces", to("GET  /health HTTP/1.1"), &[400], true),
        row(25, "not HTTP", "\u{16}\u{3}\u{1}\u{2}\r\n\r\n", &[400], true),
        row(26, "half a preface and then something else", "PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n", &[0, 400, 505], true),
        row(27, "URI of 70 KB", get(&format!("/{}", "a".repeat(70_000)), ""), &[414, 431], true),
        row(27, "URI of 9 KB", get(&format!("/{}", "a".repeat(9_000)), ""), &[414], false),
        row(27, "query of 9 KB", get(&format!("{NOTES}?{}", "a".repeat(9_000)), ""), &[414], false),
    ]
}

fn own(kind: &str, body: &str) -> String {
    let length = body.len();
    format!("POST /auth/login HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n{body}")
}

fn bodies() -> Vec<Row> {
    let json = "application/json";
    let deep = |open: &str, close: &str| format!("{}{}", open.repeat(30_000), close.repeat(30_000));
    vec![
        row(36, "gzip to an instance", post("Content-Encoding: gzip\r\nContent-Length: 2", "{}"), &[415], false),
        row(
            36,
            "gzip over identity",
            post("Content-Encoding: identity, gzip\r\nContent-Length: 2", "{}"),
            &[415],
            false,
        ),
        row(
            36,
            "gzip on a second line",
            post("Content-Encoding: identity\r\nContent-Encoding: gzip\r\nContent-Length: 2", "{}"),
            &[415],
            false,
        ),
        row(
            36,
            "gzip to us",
            "POST /auth/login HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}",
            &[415],
            false,
        ),
        row(37, "arrays 30,000 deep", own(json, &deep("[", "]")), &[400], false),
        row(
            37,
            "objects 10,000 deep",
            own(json, &format!("{}1{}", r#"{"a":"#.repeat(10_000), "}".repeat(10_000))),
            &[400],
            false,
        ),
        row(37, "unclosed", own(json, &"[".repeat(60_000)), &[400], false),
        row(
            38,
            "a key twice",
            own(json, r#"{"email":"a@example.com","password":"12345678","email":"b@example.com"}"#),
            &[400],
            false,
        ),
        row(39, "1e999", own(json, r#"{"email":1e999,"password":"12345678"}"#), &[400], false),
        row(39, "NaN", own(json, r#"{"email":NaN,"password":"12345678"}"#), &[400], false),
        row(39, "lone surrogate", own(json, r#"{"email":"\ud800","password":"12345678"}"#), &[400], false),
        row(
            39,
            "not UTF-8",
            {
                let mut b = own(json, r#"{"email":"?"}"#).into_bytes();
                let at = b.len() - 3;
                b[at] = 0xff;
                b
            },
            &[400],
            false,
        ),
        row(
            39,
            "NUL in a string",
            own(json, r#"{"email":"a\u0000@example.com","password":"12345678"}"#),
            &[400],
            false,
        ),
        row(39, "UTF-7", own("application/json; charset=utf-7", "+AHs-"), &[400, 415], false),
        row(
            40,
            "text/plain",
            own("text/plain", r#"{"email":"a@example.com","password":"12345678"}"#),
            &[400, 415],
            false,
        ),
        row(40, "no type", "POST /auth/login HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}", &[400, 415], false),
        row(40, "a form", own("application/x-www-form-urlencoded", "email=a&password=b"), &[400, 415], false),
    ]
}

fn forms() -> Vec<Row> {
    let mut rows = Vec::new();
    let parts = "--b\r\nContent-Disposition: form-data; name=\"x\"\r\n\r\n1\r\n".repeat(10_000) + "--b--\r\n";
    for (what, kind, body) in [
        ("without a boundary", "multipart/form-data", "--b\r\n\r\n--b--\r\n"),
        ("with an empty boundary", "multipart/form-data; boundary=", "--\r\n\r\n----\r\n"),
        ("of 10,000 parts", "multipart/form-data; boundary=b", &parts),
        (
            "without an end",
            "multipart/form-data; boundary=b",
            "--b\r\nContent-Disposition: form-data; name=\"email\"\r\n\r\nx",
        ),
    ] {
        let bytes = format!(
            "POST /api/collections/users/records HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        rows.push(row(41, &format!("sign-up {what}"), bytes, &[400, 413], false));
    }
    rows
}

fn paths() -> Vec<Row> {
    let mut rows = Vec::new();
    for (number, path) in [
        (42, "/.."),
        (42, "/."),
        (42, "/api/../_/"),
        (42, "/api/./sql"),
        (42, "/api/collections/notes/.."),
        (43, "/%2e%2e"),
        (43, "/api/%2E%2e/_/"),
        (43, "/api/.%2e/_/"),
        (43, "/%2e"),
        (44, "/..%2f"),
        (44, "/api%2fsql"),
        (44, "/api/collections/notes%2Frecords"),
        (46, "/api\\sql"),
        (46, "/..\\.."),
        (46, "/api%5csql"),
        (47, "//"),
        (47, "//api/sql"),
        (47, "/api//sql"),
        (47, "/api/collections/notes//records"),
        (47, "//evil.example/x"),
        (48, "/%00"),
        (48, "/api/collections/notes%00/records"),
        (48, "/a%0d%0aX:%20y"),
        (48, "/a%7f"),
        (48, "/a%09b"),
        (49, "/%zz"),
        (49, "/%"),
        (49, "/%4"),
        (49, "/%u002e"),
        (49, "/%+1"),
        (50, "/%c0%ae%c0%ae/"),
        (50, "/%c0%af"),
        (50, "/%e0%80%af"),
        (50, "/%ff"),
        (50, "/%ed%a0%80"),
        (50, "/%f4%90%80%80"),
        (50, "/é"),
    ] {
        rows.push(row(number, path, get(path, ""), &[400], false));
    }
    for (number, path) in [
        (45, "/%252e%252e/_/"),
        (45, "/api/%2573ql"),
        (45, "/api/collections/notes%252frecords"),
        (51, "/api/collections/notes;x=1/records"),
        (51, "/api/sql;x"),
        (51, "/api/collections/notes/records;x"),
        (51, "/_;/"),
        (51, "/api/%73ql"),
        (51, "/api/collections/%5fsuperusers/records"),
        (51, "/API/collections/notes/records"),
    ] {
        rows.push(row(number, path, get(path, ""), &[404], false));
    }
    rows.push(row(49, "raw bytes in the query", get("/health?\u{1}", ""), &[400], true));
    rows.push(row(50, "raw UTF-8 in the query", get("/health?é", ""), &[400], false));
    rows
}

fn identities() -> Vec<Row> {
    let mut rows = Vec::new();
    let long = "a".repeat(64);
    for name in [
        ".", "..", "con", "_", &long, "a--b", "-a", "A", "%D0%B0da", "ada%20", "%20ada", "www", "api", "admin", "a.b",
        "a_b", "ada%00", "global", "nobody",
    ] {
        // 501 only until addresses by name are there.
        let path = format!("/t/{name}/api/collections/notes/records");
        rows.push(row(53, &path, get(&path, ""), &[400, 401, 403, 404, 501], false));
    }
    for path in ["/t//api/collections/notes/records", "/t/", "/t"] {
        rows.push(row(53, path, get(path, ""), &[400, 404, 501], false));
    }
    for name in ["con", "_", "-a", "a--b", "A", "www", "admin", "nobody", "xn--80ak6aa92e"] {
        let bytes = bare(&format!("GET {NOTES} HTTP/1.1"), &format!("Host: {name}.example\r\n"));
        rows.push(row(53, &format!("Host {name}.example"), bytes, &[400, 401, 404], false));
    }
    for (what, headers) in [
        ("the same twice", "Authorization: TOKEN\r\n"),
        ("and another", "Authorization: other\r\n"),
        ("and Basic", "Authorization: Basic YTpi\r\n"),
        ("and an empty one", "Authorization:\r\n"),
    ] {
        rows.push(row(63, &format!("two Authorization headers: {what}"), get(NOTES, headers), &[400], false));
    }
    for (number, what, value) in [
        (63, "two tokens in one line", "TOKEN, TOKEN"),
        (63, "two schemes in one line", "Bearer Bearer TOKEN"),
        (64, "Basic with an encoded NUL", "Basic YWRhAHg6AA=="),
        (64, "Basic with broken base64", "Basic ===="),
        (64, "scheme alone", "Bearer"),
        (64, "token of 10 KB", &"a".repeat(10_000)),
        (64, "token in umlauts", "Bearer ä"),
        (62, "a token in a cookie", "\r\nCookie: pb_auth=TOKEN; token=TOKEN"),
        (60, "a cookie of the parent", "\r\nCookie: session=TOKEN; Domain=example.com"),
    ] {
        let bytes = bare(&format!("GET {NOTES} HTTP/1.1"), &format!("Host: x\r\nAuthorization: {value}\r\n"));
        rows.push(row(number, what, bytes, &[401], false));
    }
    rows.push(row(62, "a write with a cookie alone", format!(
        "POST {NOTES} HTTP/1.1\r\nHost: x\r\nCookie: pb_auth=TOKEN\r\nOrigin: https://evil.example\r\nContent-Type: application/json\r\nContent-Length: 13\r\n\r\n{{\"title\":\"x\"}}"
    ), &[401], false));
    rows.push(row(
        64,
        "Basic with a NUL",
        bare(&format!("GET {NOTES} HTTP/1.1"), "Host: x\r\nAuthorization: Basic a\0b\r\n"),
        &[400],
        true,
    ));
    for (path, credential, status) in [
        ("/ws", "", 401),
        ("/api/v1/ws", "", 401),
        ("/queue_updates", "", 401),
        ("/ws", "Cookie: session_token=TOKEN\r\n", 403),
        ("/queue_updates", "Cookie: __Host-session_token=TOKEN\r\n", 403),
        // An event stream of PocketBase, which knows no cookies: never 101.
        ("/api/realtime", "", 200),
    ] {
        let head = "Host: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nOrigin: https://evil.example\r\n\
            Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
        let bytes = bare(&format!("GET {path} HTTP/1.1"), &format!("{head}{credential}"));
        rows.push(row(61, &format!("WebSocket of another origin at {path} {credential}"), bytes, &[status], false));
    }
    rows
}
