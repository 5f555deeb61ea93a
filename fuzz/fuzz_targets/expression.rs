//! A text as a delay expression: a second reading of it, which builds no tree, gives the same.
#![no_main]

use std::iter::Peekable;
use std::str::Chars;
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use strapi_qstash::dev_server::Expression;

const DAY: f64 = 86_400_000.0;

fuzz_target!(|source: &[u8]| {
    let Ok(source) = std::str::from_utf8(source) else {
        return;
    };
    let expression = match Expression::parse(source) {
        Ok(expression) => expression,
        Err(error) => {
            let value = Reader::new(source, 0.0).all();
            assert!(
                value.is_none() || source.len() > 512,
                "{source:?} is refused: {error}"
            );
            return;
        }
    };
    assert_eq!(expression.source(), source);
    for retried in [0, 1, 2, 5, 100, u32::MAX] {
        let value = Reader::new(source, f64::from(retried))
            .all()
            .expect("no expression is taken");
        let expected =
            (!value.is_nan()).then(|| Duration::from_secs_f64(value.clamp(0.0, DAY) / 1000.0));
        assert_eq!(
            expression.delay(retried),
            expected,
            "{source:?} with {retried} gives {value}"
        );
    }
});

/// Reads and evaluates at once.
struct Reader<'a> {
    rest: Peekable<Chars<'a>>,
    retried: f64,
}

impl<'a> Reader<'a> {
    fn new(source: &'a str, retried: f64) -> Self {
        Self {
            rest: source.chars().peekable(),
            retried,
        }
    }

    fn all(mut self) -> Option<f64> {
        let value = self.terms(0)?;
        self.next().is_none().then_some(value)
    }

    /// Operators that bind at least as strongly as `level`: 0 for sums, 1 for products.
    fn terms(&mut self, level: u8) -> Option<f64> {
        let mut value = self.operand()?;
        while let Some(operator) = self.next() {
            let binds = match operator {
                '+' | '-' => 0,
                '*' | '/' => 1,
                _ => break,
            };
            if binds < level {
                break;
            }
            self.rest.next();
            let right = self.terms(binds + 1)?;
            value = match operator {
                '+' => value + right,
                '-' => value - right,
                '*' => value * right,
                _ => value / right,
            };
        }
        Some(value)
    }

    fn operand(&mut self) -> Option<f64> {
        match self.next()? {
            '-' => {
                self.rest.next();
                self.operand().map(|value| -value)
            }
            '(' => self
                .arguments()
                .filter(|values| values.len() == 1)
                .map(|values| values[0]),
            c if c == '.' || c.is_ascii_digit() => {
                self.word(|c| c == '.' || c.is_ascii_digit()).parse().ok()
            }
            c if c.is_ascii_alphabetic() => {
                match self
                    .word(|c| c == '_' || c.is_ascii_alphanumeric())
                    .as_str()
                {
                    "retried" => Some(self.retried),
                    name => self.call(name),
                }
            }
            _ => None,
        }
    }

    fn call(&mut self, name: &str) -> Option<f64> {
        let values = self.arguments()?;
        match (name, values.as_slice()) {
            ("exp", [x]) => Some(x.exp()),
            ("sqrt", [x]) => Some(x.sqrt()),
            ("abs", [x]) => Some(x.abs()),
            ("floor", [x]) => Some(x.floor()),
            ("ceil", [x]) => Some(x.ceil()),
            ("round", [x]) => Some(x.round()),
            ("pow", [x, y]) => Some(x.powf(*y)),
            ("min", _) => values.into_iter().reduce(f64::min),
            ("max", _) => values.into_iter().reduce(f64::max),
            _ => None,
        }
    }

    /// `(a, b, …)`, at least one.
    fn arguments(&mut self) -> Option<Vec<f64>> {
        let mut values = Vec::new();
        self.next().filter(|c| *c == '(')?;
        loop {
            self.rest.next();
            values.push(self.terms(0)?);
            match self.next()? {
                ')' => break,
                ',' => {}
                _ => return None,
            }
        }
        self.rest.next();
        Some(values)
    }

    fn word(&mut self, belongs: fn(char) -> bool) -> String {
        let mut word = String::new();
        while let Some(c) = self.rest.next_if(|c| belongs(*c)) {
            word.push(c);
        }
        word
    }

    /// What comes next that is no space; it stays.
    fn next(&mut self) -> Option<char> {
        while self.rest.next_if_eq(&' ').is_some() {}
        self.rest.peek().copied()
    }
}
