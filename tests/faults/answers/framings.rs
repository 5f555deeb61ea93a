//! How an answer is put on the wire, in every way that is right and in many that are not.

use super::cases::{Case, HTML, add, fake};
use super::scripted::{Answer, Kind, Then};

/// Answers that are no HTTP, or that lie about where they end. Nothing was taken, whatever
/// they hold.
pub(super) fn wrong(cases: &mut Vec<Case>, kind: Kind) {
    let mut add_lie = |name: &str, then: Then, dress: fn(&str) -> String| {
        add(cases, kind, name, move |asked| {
            Answer::raw(&dress(&fake(asked.count).to_string()), b"", then)
        });
    };
    let keep = Then::Keep;
    add_lie("nothing, closed", Then::Close, |_| String::new());
    add_lie("nothing, reset", Then::Reset, |_| String::new());
    add_lie("half of a head, closed", Then::Close, |_| {
        "HTTP/1.1 200 OK\r\ncontent-le".to_owned()
    });
    add_lie("half of a head, reset", Then::Reset, |_| {
        "HTTP/1.1 200 OK\r\ncontent-le".to_owned()
    });
    add_lie("length too long, closed", Then::Close, |json| {
        ok(&length(json.len() + 1), json)
    });
    add_lie("length too long, and silence", keep, |json| {
        ok(&length(json.len() + 1), json)
    });
    add_lie("length too short", keep, |json| {
        ok(&length(json.len() - 1), json)
    });
    add_lie("two lengths", keep, |json| {
        ok(&format!("{}{}", length(json.len()), length(5)), json)
    });
    add_lie("length below zero", keep, |json| {
        ok("content-length: -1\r\n", json)
    });
    add_lie("length that is no number", keep, |json| {
        ok("content-length: all\r\n", json)
    });
    add_lie("chunks cut short", Then::Close, |json| {
        ok(CHUNKED, &chunk(json))
    });
    add_lie("chunk longer than it is", Then::Close, |json| {
        ok(
            CHUNKED,
            &format!("{:x}\r\n{json}\r\n0\r\n\r\n", json.len() + 9),
        )
    });
    add_lie("chunk size that is no number", keep, |json| {
        ok(CHUNKED, &format!("zz\r\n{json}\r\n0\r\n\r\n"))
    });
    add_lie("no HTTP", Then::Close, |_| {
        "SSH-2.0-OpenSSH_9.6\r\n".to_owned()
    });
    add_lie("a TLS alert", Then::Close, |_| {
        "\x15\x03\x03\x00\x02\x02\x28".to_owned()
    });
    add_lie("a body without a head", Then::Close, |json| json.to_owned());
    for line in [
        "HTTP/1.1 OK 200",
        "HTTP/1.1 20 OK",
        "HTTP/1.1 2000 OK",
        "HTTP/1.1 600 OK",
        "HTTP/1.1 999 OK",
        "HTTP/3.0 200 OK",
        "ICY 200 OK",
    ] {
        add(cases, kind, line, move |asked| {
            let json = fake(asked.count).to_string();
            Answer::raw(
                &format!("{line}\r\n{}\r\n{json}", length(json.len())),
                b"",
                Then::Keep,
            )
        });
    }
    let mut add_lie = |name: &str, then: Then, dress: fn(&str) -> String| {
        add(cases, kind, name, move |asked| {
            Answer::raw(&dress(&fake(asked.count).to_string()), b"", then)
        });
    };
    add_lie("100 and no more", Then::Close, |_| {
        "HTTP/1.1 100 Continue\r\n\r\n".to_owned()
    });
    add_lie("101 and a right answer", Then::Close, |json| {
        format!(
            "HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n{}",
            ok(&length(json.len()), json)
        )
    });
    add_lie("103 fifty times, then 500", keep, |json| {
        format!(
            "{}HTTP/1.1 500 No\r\n{}\r\n{json}",
            EARLY.repeat(50),
            length(json.len())
        )
    });
    // A second answer is nobody's: the next event must not take it for its own.
    add_lie("500 and a second answer", keep, |json| {
        let right = ok(&length(json.len()), json);
        format!("HTTP/1.1 500 No\r\ncontent-length: 2\r\n\r\n{{}}{right}")
    });
    add_lie("HTML and a second answer", keep, |json| {
        let right = ok(&length(json.len()), json);
        format!("{}{right}", ok(&length(HTML.len()), HTML))
    });
}

/// The right answer, in every way in which HTTP may put it, and in some in which it may not.
pub(super) fn right(cases: &mut Vec<Case>, kind: Kind) {
    let mut add_right = |name: &str, then: Then, dress: fn(&str) -> String| {
        add(cases, kind, name, move |asked| {
            Answer::raw(&dress(&asked.accept().to_string()), b"", then)
        });
    };
    let keep = Then::Keep;
    add_right("right after 100", keep, |json| {
        format!(
            "HTTP/1.1 100 Continue\r\n\r\n{}",
            ok(&length(json.len()), json)
        )
    });
    add_right("right after 103 fifty times", keep, |json| {
        format!("{}{}", EARLY.repeat(50), ok(&length(json.len()), json))
    });
    add_right("right, to the end", Then::Close, |json| ok("", json));
    add_right("right, then reset", Then::Reset, |json| {
        ok(&length(json.len()), json)
    });
    add_right("right, chunked", keep, |json| {
        ok(
            CHUNKED,
            &format!("{}0\r\nx-trailer: 1\r\n\r\n", chunk(json)),
        )
    });
    add_right("right, a byte a chunk", keep, |json| {
        let bytes: String = json.chars().map(|byte| chunk(&byte.to_string())).collect();
        ok(CHUNKED, &format!("{bytes}0\r\n\r\n"))
    });
    add_right("right, chunked and with a length", keep, |json| {
        ok(
            &format!("{CHUNKED}content-length: 3\r\n"),
            &format!("{}0\r\n\r\n", chunk(json)),
        )
    });
    add_right("right, HTTP/1.0", Then::Close, |json| {
        format!("HTTP/1.0 200 OK\r\n\r\n{json}")
    });
    add_right("right, without a word", keep, |json| {
        format!("HTTP/1.1 200\r\n{}\r\n{json}", length(json.len()))
    });
    add_right("right, bare line feeds", keep, |json| {
        format!("HTTP/1.1 200 OK\ncontent-length: {}\n\n{json}", json.len())
    });
    add_right("right, a header without a colon", keep, |json| {
        ok(&format!("nonsense\r\n{}", length(json.len())), json)
    });
    add_right("right, a folded header", keep, |json| {
        ok(
            &format!("x-folded: a\r\n b\r\n{}", length(json.len())),
            json,
        )
    });
    add_right("right, a header of a megabyte", keep, |json| {
        ok(
            &format!("x-large: {}\r\n{}", "x".repeat(1 << 20), length(json.len())),
            json,
        )
    });
    add_right("right, a thousand headers", keep, |json| {
        let many: String = (0..1000).map(|n| format!("x-{n}: {n}\r\n")).collect();
        ok(&format!("{many}{}", length(json.len())), json)
    });
    add_right("right, and elsewhere from now on", keep, |json| {
        ok(
            &format!(
                "alt-svc: h2=\"elsewhere.invalid:443\"\r\n{}",
                length(json.len())
            ),
            json,
        )
    });
    add(cases, kind, "right, and a second answer", |asked| {
        let (json, more) = (asked.accept().to_string(), fake(asked.count).to_string());
        let second = ok(&length(more.len()), &more);
        Answer::raw(
            &format!("{}{second}", ok(&length(json.len()), &json)),
            b"",
            Then::Keep,
        )
    });
}

const CHUNKED: &str = "transfer-encoding: chunked\r\n";

const EARLY: &str = "HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n";

fn ok(lines: &str, body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n{lines}\r\n{body}")
}

fn length(length: usize) -> String {
    format!("content-length: {length}\r\n")
}

fn chunk(body: &str) -> String {
    format!("{:x}\r\n{body}\r\n", body.len())
}
