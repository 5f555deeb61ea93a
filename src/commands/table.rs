//! Tables that fit the terminal: cells are cut with `…`, and where that is not enough, the least
//! important columns are left out.

use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

/// Between two columns.
const GAP: usize = 2;

/// A column.
#[derive(Debug, Clone, Copy)]
pub(super) struct Column {
    pub(super) title: &'static str,
    /// Its cells may be cut to this; 0: never.
    pub(super) shortest: usize,
    /// Of those that must go, the one with the lowest goes first.
    pub(super) rank: u8,
}

/// How wide each column is; `None` for one that is left out.
#[derive(Debug)]
pub(super) struct Layout {
    columns: Vec<Column>,
    widths: Vec<Option<usize>>,
}

impl Layout {
    /// For these rows, within `width`; without one nothing is cut.
    pub(super) fn new(columns: &[Column], rows: &[Vec<String>], width: Option<usize>) -> Self {
        let natural = |at: usize, column: &Column| {
            let cells = rows.iter().filter_map(|row| row.get(at));
            cells
                .map(|cell| cell.width())
                .chain([column.title.width()])
                .max()
                .unwrap_or(0)
        };
        let natural: Vec<usize> = columns
            .iter()
            .enumerate()
            .map(|(at, column)| natural(at, column))
            .collect();
        let mut widths: Vec<Option<usize>> = natural.iter().copied().map(Some).collect();
        if let Some(width) = width {
            while total(&widths) > width {
                if !shrink(columns, &mut widths, width) {
                    // One goes, and the others may be as wide as they are for now.
                    let shown = widths.iter().zip(columns).enumerate();
                    let least = shown
                        .filter(|(_, (shown, _))| shown.is_some())
                        .min_by_key(|(_, (_, column))| column.rank)
                        .map(|(at, _)| at);
                    for (at, shown) in widths.iter_mut().enumerate() {
                        *shown = shown.and(natural.get(at).copied());
                    }
                    match least.and_then(|at| widths.get_mut(at)) {
                        Some(gone) if columns.len() > 1 => *gone = None,
                        _ => break,
                    }
                    if widths.iter().all(Option::is_none) {
                        break;
                    }
                }
            }
        }
        Self {
            columns: columns.to_vec(),
            widths,
        }
    }

    pub(super) fn header(&self) -> String {
        let titles: Vec<String> = self
            .columns
            .iter()
            .map(|column| column.title.to_owned())
            .collect();
        self.line(&titles)
    }

    pub(super) fn line(&self, cells: &[String]) -> String {
        let mut line = String::new();
        let mut gap = 0;
        for (cell, width) in cells.iter().zip(&self.widths) {
            let Some(width) = width else { continue };
            line.push_str(&" ".repeat(gap));
            let cell = cut(cell, *width);
            line.push_str(&cell);
            gap = GAP + width.saturating_sub(cell.width());
        }
        line.truncate(line.trim_end().len()); // the last cells may be empty
        line
    }
}

fn total(widths: &[Option<usize>]) -> usize {
    let shown = widths.iter().flatten();
    let gaps = shown.clone().count().saturating_sub(1) * GAP;
    shown.sum::<usize>() + gaps
}

/// Takes what is too much from the widest cells that may be cut; whether that is enough.
fn shrink(columns: &[Column], widths: &mut [Option<usize>], width: usize) -> bool {
    while total(widths) > width {
        let can = columns.iter().zip(widths.iter_mut());
        let widest = can
            .filter_map(|(column, shown)| {
                let shown = shown.as_mut()?;
                (column.shortest > 0 && *shown > column.shortest).then_some(shown)
            })
            .max_by_key(|shown| **shown);
        match widest {
            Some(shown) => *shown -= 1,
            None => return false,
        }
    }
    true
}

/// Cut to a width, with `…` in place of what is missing; on one line.
fn cut(text: &str, width: usize) -> String {
    let line: String = text
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    if line.width() <= width {
        return line;
    }
    let mut kept = String::new();
    let mut used = 1; // the mark
    for c in line.chars() {
        used += c.width().unwrap_or(0);
        if used > width {
            break;
        }
        kept.push(c);
    }
    kept.push('…');
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    const COLUMNS: [Column; 3] = [
        Column {
            title: "ID",
            shortest: 4,
            rank: 9,
        },
        Column {
            title: "STATE",
            shortest: 0,
            rank: 5,
        },
        Column {
            title: "WHY",
            shortest: 6,
            rank: 1,
        },
    ];

    fn rows() -> Vec<Vec<String>> {
        [
            ["0123456789", "pending", "the topic news was not found"],
            ["01", "dead", "größer als 日本語 und\nzwei Zeilen"],
        ]
        .map(|row| row.map(str::to_owned).to_vec())
        .to_vec()
    }

    #[test]
    fn no_line_is_wider_than_the_terminal_whatever_its_width() {
        for width in 1..80 {
            let layout = Layout::new(&COLUMNS, &rows(), Some(width));
            for line in rows()
                .iter()
                .map(|row| layout.line(row))
                .chain([layout.header()])
            {
                assert!(line.width() <= width.max(10), "{width}: {line:?}");
                assert!(!line.contains('\n'));
            }
        }
    }

    #[test]
    fn first_cells_are_cut_then_columns_go() {
        let lines = |width| {
            let layout = Layout::new(&COLUMNS, &rows(), width);
            rows()
                .iter()
                .map(|row| layout.line(row))
                .collect::<Vec<_>>()
        };
        assert_eq!(
            lines(None)[0],
            "0123456789  pending  the topic news was not found"
        );
        assert_eq!(lines(Some(30))[0], "0123456789  pending  the topi…");
        assert_eq!(lines(Some(21))[0], "012…  pending  the t…");
        assert_eq!(lines(Some(20))[0], "0123456789  pending");
    }
}
