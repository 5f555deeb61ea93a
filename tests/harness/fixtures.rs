//! The captured webhooks of `tests/fixtures/strapi`.

use std::path::{Path, PathBuf};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/strapi")
}

/// Their names, in order.
pub(crate) fn names() -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(folder())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.ends_with(".http"))
        .collect();
    names.sort();
    names
}

/// One of them, with the path of the sidecar: the whole request, and its body.
pub(crate) fn captured(name: &str) -> (Vec<u8>, Vec<u8>) {
    let path = folder().join(name);
    let request = std::fs::read(&path).unwrap_or_else(|error| panic!("{path:?}: {error}"));
    let line_end = request.windows(2).position(|two| two == b"\r\n").unwrap();
    let head_end = request
        .windows(4)
        .position(|four| four == b"\r\n\r\n")
        .unwrap();
    let mut sent = b"POST /webhook HTTP/1.1".to_vec();
    sent.extend_from_slice(&request[line_end..]);
    (sent, request[head_end + 4..].to_vec())
}
