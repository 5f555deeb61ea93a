//! Which pages of an SQLite file a row lies on: what a damaged page can explain.
//! <https://www.sqlite.org/fileformat2.html>

use std::collections::BTreeMap;

/// Page numbers begin at 1.
pub(crate) type Page = u32;

/// The file's page size.
pub(crate) fn page_size(file: &[u8]) -> usize {
    match u16::from_be_bytes([file[16], file[17]]) {
        1 => 65_536,
        size => size.into(),
    }
}

/// The pages that hold each row of a table: its leaf, which comes first, and where it runs over.
pub(crate) fn rows(file: &[u8], root: Page) -> BTreeMap<i64, Vec<Page>> {
    let mut rows = BTreeMap::new();
    let mut pages = vec![root];
    while let Some(page) = pages.pop() {
        let bytes = bytes_of(file, page);
        let header = if page == 1 { &bytes[100..] } else { bytes };
        let cells = usize::from(u16::from_be_bytes([header[3], header[4]]));
        let pointers = |first: usize| {
            let pairs = header[first..first + 2 * cells].chunks_exact(2);
            pairs.map(|pair| usize::from(u16::from_be_bytes([pair[0], pair[1]])))
        };
        match header[0] {
            INTERIOR => {
                pages.push(number(&header[8..]));
                pages.extend(pointers(12).map(|cell| number(&bytes[cell..])));
            }
            LEAF => rows.extend(pointers(8).map(|cell| row(file, page, &bytes[cell..]))),
            kind => panic!("page {page} is of no table: {kind}"),
        }
    }
    rows
}

const INTERIOR: u8 = 5;
const LEAF: u8 = 13;

fn bytes_of(file: &[u8], page: Page) -> &[u8] {
    let size = page_size(file);
    &file[(page as usize - 1) * size..][..size]
}

fn row(file: &[u8], leaf: Page, cell: &[u8]) -> (i64, Vec<Page>) {
    let (length, after_length) = varint(cell);
    let (rowid, after_rowid) = varint(&cell[after_length..]);
    let (length, usable) = (usize::try_from(length).unwrap(), page_size(file));
    // How much of a row stays on its leaf.
    let most = usable - 35;
    let local = if length <= most {
        length
    } else {
        let least = (usable - 12) * 32 / 255 - 23;
        let fitting = least + (length - least) % (usable - 4);
        if fitting <= most { fitting } else { least }
    };
    let mut pages = vec![leaf];
    if local < length {
        let mut next = number(&cell[after_length + after_rowid + local..]);
        while next != 0 {
            pages.push(next);
            next = number(bytes_of(file, next));
        }
    }
    (rowid, pages)
}

fn number(bytes: &[u8]) -> Page {
    u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

/// A value, and how many bytes it took.
fn varint(bytes: &[u8]) -> (i64, usize) {
    let mut value = 0_i64;
    for (at, byte) in bytes.iter().take(8).enumerate() {
        value = value << 7 | i64::from(byte & 0x7f);
        if byte & 0x80 == 0 {
            return (value, at + 1);
        }
    }
    (value << 8 | i64::from(bytes[8]), 9)
}
