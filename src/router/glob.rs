//! Patterns: `*` is any run of characters, `?` any one.

/// Whether all of `text` matches. It goes back to the last `*` only, so its time is bounded
/// by the product of both lengths, whatever the pattern.
pub(super) fn glob(pattern: &str, text: &str) -> bool {
    matches_pattern(pattern, text, |p, t| p == '?' || p == t)
}

/// Whether `general` matches every text that `special` does: `special` is read as a text in
/// which only a `*` may stand for its `*`, and only `?` or `*` for its `?`.
pub(super) fn covers_glob(general: &str, special: &str) -> bool {
    matches_pattern(general, special, |p, t| {
        (p == '?' && t != '*') || (p == t && p != '*')
    })
}

fn matches_pattern(pattern: &str, text: &str, matches: impl Fn(char, char) -> bool) -> bool {
    let (mut pattern, mut text) = (pattern.chars(), text.chars());
    // Where to go on when it does not match: behind the last `*`, one character later.
    let mut retry: Option<(std::str::Chars<'_>, std::str::Chars<'_>)> = None;
    loop {
        let mut ahead = pattern.clone();
        match (ahead.next(), text.clone().next()) {
            (Some('*'), _) => {
                retry = Some((ahead.clone(), text.clone()));
                pattern = ahead;
                continue;
            }
            (None, None) => return true,
            (Some(p), Some(t)) if matches(p, t) => {
                pattern = ahead;
                text.next();
                continue;
            }
            _ => {}
        }
        let Some((after_star, tried)) = &mut retry else {
            return false;
        };
        if tried.next().is_none() {
            return false;
        }
        pattern = after_star.clone();
        text = tried.clone();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn covering_is_never_claimed_wrongly() {
        let mut random = fastrand::Rng::with_seed(7);
        let mut text = |letters: &[char], longest: usize| -> String {
            (0..random.usize(0..=longest))
                .map(|_| letters[random.usize(..letters.len())])
                .collect()
        };
        let mut covered = 0;
        for _ in 0..200_000 {
            let (general, special) = (
                text(&['a', 'b', '*', '?'], 4),
                text(&['a', 'b', '*', '?'], 4),
            );
            let sample = text(&['a', 'b'], 6);
            if covers_glob(&general, &special) && glob(&special, &sample) {
                covered += 1;
                assert!(
                    glob(&general, &sample),
                    "{general} covers {special}, but not {sample}"
                );
            }
        }
        assert!(covered > 1000);
    }

    #[test]
    fn no_pattern_takes_long() {
        let (pattern, text) = ("*a".repeat(200) + "b", "a".repeat(20_000));
        assert!(!glob(&pattern, &text));
    }
}
