//! Requests in every form that one should not have, and in some odd ones that it may have.
//! What each may come to is RFC 9112's word: <https://www.rfc-editor.org/rfc/rfc9112>.

/// What a request may come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// Its event is taken, whole.
    Taken,
    /// It is refused, or the connection closed: no event.
    Refused,
    /// The one or the other.
    Either,
    /// It is whole as it says itself, but what it holds is no JSON: a dead letter, and told so.
    Dead,
}

/// A request as bytes.
pub(super) struct Form {
    pub(super) name: &'static str,
    pub(super) bytes: Vec<u8>,
    pub(super) fate: Fate,
}

/// A request within a request. Whoever takes it has lost track of where a request ends.
pub(super) const SMUGGLED: &str = r#"{"event":"smuggled"}"#;

/// The event of a form, by its name.
pub(super) fn event(name: &str) -> String {
    format!(r#"{{"event":"form","name":"{name}"}}"#)
}

fn smuggled() -> String {
    format!(
        "POST /webhook HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{SMUGGLED}",
        SMUGGLED.len()
    )
}

/// A body in one chunk, without the last one.
fn chunk(body: &str) -> String {
    format!("{:x}\r\n{body}\r\n", body.len())
}

pub(super) fn all() -> Vec<Form> {
    let mut forms = Vec::new();
    lengths(&mut forms);
    codings(&mut forms);
    chunks(&mut forms);
    heads(&mut forms);
    refused_with_a_body(&mut forms);
    forms
}

/// A form whose head has these lines (each with its end) and then this body.
fn add(forms: &mut Vec<Form>, name: &'static str, fate: Fate, lines: &str, body: &str) {
    let head = "POST /webhook HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n";
    forms.push(Form {
        name,
        bytes: format!("{head}{lines}\r\n{body}").into_bytes(),
        fate,
    });
}

/// RFC 9112, 6.2 and 6.3: `Content-Length`.
fn lengths(forms: &mut Vec<Form>) {
    use Fate::{Dead, Either, Refused, Taken};
    let length = |name: &str| event(name).len();
    let mut form = |name: &'static str, fate, value: &str| {
        let lines = format!("content-length: {value}\r\n");
        add(forms, name, fate, &lines, &event(name));
    };
    let name = "right length";
    form(name, Taken, &length(name).to_string());
    let name = "length with spaces";
    form(name, Taken, &format!("   {}  ", length(name)));
    let name = "the same length twice in a line";
    form(name, Either, &format!("{0}, {0}", length(name)));
    let name = "two lengths in a line";
    form(name, Refused, &format!("5, {}", length(name)));
    let name = "length with a plus";
    form(name, Refused, &format!("+{}", length(name)));
    let name = "length below zero";
    form(name, Refused, &format!("-{}", length(name)));
    let name = "length in hexadecimal";
    form(name, Refused, &format!("{:#x}", length(name)));
    form("length beyond 64 bits", Refused, "99999999999999999999999");
    form("no length in it", Refused, "");
    let name = "one byte less than it says";
    form(name, Refused, &(length(name) + 1).to_string());
    let name = "one byte more than it says";
    form(name, Dead, &(length(name) - 1).to_string());
    let mut form = |name: &'static str, fate, lines: String, rest: &str| {
        add(forms, name, fate, &lines, &format!("{}{rest}", event(name)));
    };
    let name = "the same length twice";
    let line = format!("content-length: {}\r\n", length(name));
    form(name, Either, line.repeat(2), "");
    let name = "a shorter length after the right one";
    let lines = format!("content-length: {}\r\ncontent-length: 5\r\n", length(name));
    form(name, Refused, lines, "");
    let name = "a longer length before the right one";
    let (long, right) = (length(name) + smuggled().len(), length(name));
    let lines = format!("content-length: {long}\r\ncontent-length: {right}\r\n");
    form(name, Refused, lines, &smuggled());
}

/// RFC 9112, 6.1: `Transfer-Encoding`, and 6.3 for both at once.
fn codings(forms: &mut Vec<Form>) {
    use Fate::{Dead, Either, Refused, Taken};
    let mut form = |name: &'static str, fate, lines: &str| {
        let body = format!("{}0\r\n\r\n", chunk(&event(name)));
        add(forms, name, fate, lines, &body);
    };
    form("chunked", Taken, "transfer-encoding: chunked\r\n");
    form(
        "chunked in capitals",
        Taken,
        "Transfer-Encoding: CHUNKED\r\n",
    );
    form(
        "chunked twice",
        Either,
        "transfer-encoding: chunked, chunked\r\n",
    );
    form("another coding", Refused, "transfer-encoding: xchunked\r\n");
    form(
        "chunked and not last",
        Refused,
        "transfer-encoding: chunked, identity\r\n",
    );
    form(
        "a coding before chunked",
        Either,
        "transfer-encoding: gzip, chunked\r\n",
    );
    form(
        "coding with a quote",
        Refused,
        "transfer-encoding: \"chunked\"\r\n",
    );
    form(
        "space before the colon",
        Refused,
        "transfer-encoding : chunked\r\n",
    );
    form(
        "vertical tab before chunked",
        Refused,
        "transfer-encoding: \x0bchunked\r\n",
    );
    form(
        "folded coding",
        Refused,
        "transfer-encoding:\r\n chunked\r\n",
    );
    // In each of these, one of the two ways to tell where the body ends shows another request.
    let mut form = |name: &'static str, fate, lines: &str, length: usize, body: String| {
        let lines = format!("{lines}content-length: {length}\r\n");
        add(forms, name, fate, &lines, &body);
    };
    let name = "chunked and a length to the end";
    let body = format!("{}0\r\n\r\n{}", chunk(&event(name)), smuggled());
    form(
        name,
        Either,
        "transfer-encoding: chunked\r\n",
        body.len(),
        body,
    );
    let name = "chunked and a length of four";
    let body = format!("{}0\r\n\r\n", chunk(&smuggled()));
    form(name, Dead, "transfer-encoding: chunked\r\n", 4, body);
    for (name, line) in [
        (
            "unknown coding and a length",
            "transfer-encoding: xchunked\r\n",
        ),
        (
            "space before the colon and a length",
            "transfer-encoding : chunked\r\n",
        ),
        ("identity and a length", "transfer-encoding: identity\r\n"),
    ] {
        let body = format!("{}0\r\n\r\n{}", chunk(&event(name)), smuggled());
        form(name, Refused, line, body.len(), body);
    }
}

/// RFC 9112, 7.1: chunks.
fn chunks(forms: &mut Vec<Form>) {
    use Fate::{Either, Refused, Taken};
    let mut form = |name: &'static str, fate, body: String| {
        add(forms, name, fate, "transfer-encoding: chunked\r\n", &body);
    };
    let name = "chunk with an extension";
    let (body, length) = (event(name), event(name).len());
    form(
        name,
        Taken,
        format!("{length:x};name=value\r\n{body}\r\n0\r\n\r\n"),
    );
    let name = "chunk with a large extension";
    let (body, length) = (event(name), event(name).len());
    let large = "x".repeat(100_000);
    form(
        name,
        Either,
        format!("{length:x};{large}\r\n{body}\r\n0\r\n\r\n"),
    );
    let name = "extension with a bare line feed";
    let (body, length) = (event(name), event(name).len());
    let hidden = format!("{length:x};\n{body}\r\n0\r\n\r\n{}", smuggled());
    form(name, Refused, hidden);
    let name = "last chunk with a trailer";
    let trailer = "x-trailer: 1\r\ncontent-length: 5\r\n";
    form(
        name,
        Taken,
        format!("{}0\r\n{trailer}\r\n", chunk(&event(name))),
    );
    let name = "one byte a chunk";
    let bytes: String = event(name)
        .chars()
        .map(|byte| chunk(&byte.to_string()))
        .collect();
    form(name, Taken, format!("{bytes}0\r\n\r\n"));
    for (name, less) in [
        ("chunk longer than it says", 2),
        ("chunk shorter than it says", -3),
    ] {
        let (body, length) = (event(name), event(name).len() as isize - less);
        form(name, Refused, format!("{length:x}\r\n{body}\r\n0\r\n\r\n"));
    }
    for (name, size) in [
        ("chunk size that is no number", "zz"),
        ("chunk size below zero", "-5"),
        ("chunk size with a prefix", "0x2f"),
        ("chunk size beyond 64 bits", "fffffffffffffffff1"),
        ("no chunk size", ""),
    ] {
        form(
            name,
            Refused,
            format!("{size}\r\n{}\r\n0\r\n\r\n", event(name)),
        );
    }
    let name = "chunk size with a space";
    let (body, length) = (event(name), event(name).len());
    form(name, Either, format!("{length:x} \r\n{body}\r\n0\r\n\r\n"));
    let name = "chunk without an end of line";
    let (body, length) = (event(name), event(name).len());
    form(name, Refused, format!("{length:x}\r\n{body}0\r\n\r\n"));
    let name = "no last chunk";
    form(name, Refused, chunk(&event(name)));
    let name = "no end after the last chunk";
    form(name, Refused, format!("{}0\r\n", chunk(&event(name))));
}

/// RFC 9112, 2.2, 3 and 5: request line and header lines.
fn heads(forms: &mut Vec<Form>) {
    use Fate::{Either, Refused, Taken};
    let mut form = |name: &'static str, fate, line: &str, end: &str, more: &str| {
        let (body, length) = (event(name), event(name).len());
        let lines = [
            line,
            "host: x",
            "content-type: application/json",
            &format!("content-length: {length}"),
        ];
        let bytes = format!("{}{end}{more}{end}{body}", lines.join(end)).into_bytes();
        forms.push(Form { name, bytes, fate });
    };
    let post = "POST /webhook HTTP/1.1";
    let crlf = "\r\n";
    form("bare line feeds", Either, post, "\n", "");
    form("bare carriage returns", Refused, post, "\r", "");
    form(
        "empty lines before it",
        Either,
        &format!("\r\n\r\n{post}"),
        crlf,
        "",
    );
    form(
        "folded header",
        Refused,
        post,
        crlf,
        "x-folded: a\r\n b\r\n",
    );
    form(
        "header without a colon",
        Refused,
        post,
        crlf,
        "nonsense\r\n",
    );
    form(
        "header without a name",
        Refused,
        post,
        crlf,
        ": nonsense\r\n",
    );
    form(
        "zero byte in a header",
        Refused,
        post,
        crlf,
        "x-zero: a\0b\r\n",
    );
    form(
        "carriage return in a header",
        Refused,
        post,
        crlf,
        "x-cr: a\rb\r\n",
    );
    let expect = "expect: something\r\n";
    form("unknown expectation", Either, post, crlf, expect);
    let large = format!("x-large: {}\r\n", "x".repeat(1 << 20));
    form("header of a megabyte", Refused, post, crlf, &large);
    let many: String = (0..10_000).map(|n| format!("x-{n}: {n}\r\n")).collect();
    form("ten thousand headers", Refused, post, crlf, &many);
    let some: String = (0..80).map(|n| format!("x-{n}: {n}\r\n")).collect();
    form("eighty headers", Taken, post, crlf, &some);
    let target = format!("POST /webhook?{} HTTP/1.1", "x".repeat(100_000));
    form("target of 100,000 bytes", Either, &target, crlf, "");
    let absolute = "POST http://example.com/webhook HTTP/1.1";
    form("absolute target", Either, absolute, crlf, "");
    form("HTTP/1.0", Taken, "POST /webhook HTTP/1.0", crlf, "");
    form("HTTP/1.2", Either, "POST /webhook HTTP/1.2", crlf, "");
    form("HTTP/9.9", Refused, "POST /webhook HTTP/9.9", crlf, "");
    form("no version", Refused, "POST /webhook", crlf, "");
    form(
        "version in small letters",
        Refused,
        "POST /webhook http/1.1",
        crlf,
        "",
    );
    form(
        "method in small letters",
        Refused,
        "post /webhook HTTP/1.1",
        crlf,
        "",
    );
    form("two spaces", Either, "POST  /webhook HTTP/1.1", crlf, "");
    form(
        "HTTP/2 preface",
        Refused,
        "PRI * HTTP/2.0\r\n\r\nSM\r\n",
        crlf,
        "",
    );
    for (name, bytes) in [
        ("nothing but ends of lines", b"\r\n".repeat(100_000)),
        ("zeros", vec![0; 100_000]),
        (
            "TLS",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".repeat(100),
        ),
    ] {
        forms.push(Form {
            name,
            bytes,
            fate: Refused,
        });
    }
}

/// Answered from their heads: what follows is their body, whatever it looks like.
fn refused_with_a_body(forms: &mut Vec<Form>) {
    let json = "content-type: application/json\r\n";
    let body = smuggled();
    let length = format!("content-length: {}\r\n", body.len());
    let chunked = "transfer-encoding: chunked\r\n";
    let chunks = format!("{}0\r\n\r\n", chunk(&body));
    for (name, line, lines) in [
        ("another method with a body", "GET /webhook", json),
        ("another path with a body", "POST /elsewhere", json),
        (
            "another type with a body",
            "POST /webhook",
            "content-type: text/plain\r\n",
        ),
    ] {
        for (framing, body) in [(length.as_str(), &body), (chunked, &chunks)] {
            let head = format!("{line} HTTP/1.1\r\nhost: x\r\n{lines}{framing}\r\n");
            forms.push(Form {
                name,
                bytes: format!("{head}{body}").into_bytes(),
                fate: Fate::Refused,
            });
        }
    }
}
