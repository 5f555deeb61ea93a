//! `Upstash-Retry-Delay`: an expression that gives a delay in milliseconds.
//!
//! Numbers, `+ - * /`, parentheses, a leading `-`, the variable `retried` and a few
//! functions. See <https://upstash.com/docs/qstash/features/retry>.

use std::time::Duration;

/// The longest expression that is taken. It also bounds how deep one can nest, and so the
/// stack that reading and evaluating it needs.
const MAX_LENGTH: usize = 512;

/// The longest wait between two tries, whatever the expression says.
const MAX_WAIT: Duration = Duration::from_secs(86_400);

/// An expression that was read.
#[derive(Debug, Clone, PartialEq)]
pub struct Expression {
    source: String,
    root: Node,
}

/// Why a text is no expression.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ExpressionError {
    /// It is longer than any that makes sense.
    #[error("longer than {MAX_LENGTH} characters")]
    TooLong,
    /// It goes on, or ends, where something else was expected.
    #[error("expected {expected} at character {position}")]
    Unexpected {
        /// What would have been right.
        expected: &'static str,
        /// Where, counted from 0.
        position: usize,
    },
    /// It names something that does not exist.
    #[error("unknown name {name:?}")]
    UnknownName {
        /// The name.
        name: String,
    },
    /// A function has too many or too few arguments.
    #[error("{function} takes {wanted} argument(s)")]
    Arguments {
        /// The function's name.
        function: &'static str,
        /// How many it takes.
        wanted: &'static str,
    },
}

#[derive(Debug, Clone, PartialEq)]
enum Node {
    Number(f64),
    Retried,
    Negate(Box<Node>),
    Binary(Operator, Box<Node>, Box<Node>),
    One(One, Box<Node>),
    Pow(Box<Node>, Box<Node>),
    Min(Vec<Node>),
    Max(Vec<Node>),
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Operator {
    Add,
    Subtract,
    Multiply,
    Divide,
}

/// Functions of one argument.
#[derive(Debug, Clone, Copy, PartialEq)]
enum One {
    Exp,
    Sqrt,
    Abs,
    Floor,
    Ceil,
    Round,
}

impl Expression {
    /// Reads an expression.
    pub fn parse(source: &str) -> Result<Self, ExpressionError> {
        if source.len() > MAX_LENGTH {
            return Err(ExpressionError::TooLong);
        }
        let mut parser = Parser {
            text: source.as_bytes(),
            position: 0,
        };
        let root = parser.sum()?;
        match parser.peek() {
            None => Ok(Self {
                source: source.to_owned(),
                root,
            }),
            Some(_) => Err(parser.unexpected("an operator or the end")),
        }
    }

    /// The expression as it was written.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The wait before a retry, `retried` being 0 for the first. Between nothing and a
    /// day; `None` when the expression has no value (`0/0`).
    pub fn delay(&self, retried: u32) -> Option<Duration> {
        let millis = self.root.value(f64::from(retried));
        if millis.is_nan() {
            return None;
        }
        let wait = Duration::try_from_secs_f64((millis / 1000.0).max(0.0));
        Some(wait.unwrap_or(MAX_WAIT).min(MAX_WAIT))
    }
}

impl Node {
    fn value(&self, retried: f64) -> f64 {
        let best = |nodes: &[Node], better: fn(f64, f64) -> f64| {
            nodes
                .iter()
                .map(|node| node.value(retried))
                .reduce(better)
                .unwrap_or(f64::NAN)
        };
        match self {
            Self::Number(number) => *number,
            Self::Retried => retried,
            Self::Negate(node) => -node.value(retried),
            Self::Binary(operator, left, right) => {
                let (left, right) = (left.value(retried), right.value(retried));
                match operator {
                    Operator::Add => left + right,
                    Operator::Subtract => left - right,
                    Operator::Multiply => left * right,
                    Operator::Divide => left / right,
                }
            }
            Self::One(function, node) => {
                let value = node.value(retried);
                match function {
                    One::Exp => value.exp(),
                    One::Sqrt => value.sqrt(),
                    One::Abs => value.abs(),
                    One::Floor => value.floor(),
                    One::Ceil => value.ceil(),
                    One::Round => value.round(),
                }
            }
            Self::Pow(base, exponent) => base.value(retried).powf(exponent.value(retried)),
            Self::Min(nodes) => best(nodes, f64::min),
            Self::Max(nodes) => best(nodes, f64::max),
        }
    }
}

/// Reads by recursive descent: sum → product → signed → operand.
struct Parser<'a> {
    text: &'a [u8],
    position: usize,
}

impl Parser<'_> {
    fn sum(&mut self) -> Result<Node, ExpressionError> {
        let mut left = self.product()?;
        loop {
            let operator = match self.peek() {
                Some(b'+') => Operator::Add,
                Some(b'-') => Operator::Subtract,
                _ => return Ok(left),
            };
            self.position += 1;
            left = Node::Binary(operator, Box::new(left), Box::new(self.product()?));
        }
    }

    fn product(&mut self) -> Result<Node, ExpressionError> {
        let mut left = self.signed()?;
        loop {
            let operator = match self.peek() {
                Some(b'*') => Operator::Multiply,
                Some(b'/') => Operator::Divide,
                _ => return Ok(left),
            };
            self.position += 1;
            left = Node::Binary(operator, Box::new(left), Box::new(self.signed()?));
        }
    }

    fn signed(&mut self) -> Result<Node, ExpressionError> {
        if self.take(b'-') {
            return Ok(Node::Negate(Box::new(self.signed()?)));
        }
        self.operand()
    }

    fn operand(&mut self) -> Result<Node, ExpressionError> {
        match self.peek() {
            Some(b'(') => {
                self.position += 1;
                let node = self.sum()?;
                self.expect(b')', "`)`")?;
                Ok(node)
            }
            Some(byte) if byte.is_ascii_digit() || byte == b'.' => self.number(),
            Some(byte) if byte.is_ascii_alphabetic() => self.name(),
            _ => Err(self.unexpected("a number, a name or `(`")),
        }
    }

    fn number(&mut self) -> Result<Node, ExpressionError> {
        let start = self.position;
        let digits = self.run(|byte| byte.is_ascii_digit() || byte == b'.');
        digits
            .parse()
            .map(Node::Number)
            .map_err(|_not_a_number| ExpressionError::Unexpected {
                expected: "a number",
                position: start,
            })
    }

    fn name(&mut self) -> Result<Node, ExpressionError> {
        let name = self.run(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        let one = |function| move |node| Node::One(function, Box::new(node));
        match name.as_str() {
            "retried" => Ok(Node::Retried),
            "exp" => self.argument("exp").map(one(One::Exp)),
            "sqrt" => self.argument("sqrt").map(one(One::Sqrt)),
            "abs" => self.argument("abs").map(one(One::Abs)),
            "floor" => self.argument("floor").map(one(One::Floor)),
            "ceil" => self.argument("ceil").map(one(One::Ceil)),
            "round" => self.argument("round").map(one(One::Round)),
            "min" => self.arguments().map(Node::Min),
            "max" => self.arguments().map(Node::Max),
            "pow" => match <[Node; 2]>::try_from(self.arguments()?) {
                Ok([base, exponent]) => Ok(Node::Pow(Box::new(base), Box::new(exponent))),
                Err(_) => Err(ExpressionError::Arguments {
                    function: "pow",
                    wanted: "2",
                }),
            },
            _ => Err(ExpressionError::UnknownName { name }),
        }
    }

    fn argument(&mut self, function: &'static str) -> Result<Node, ExpressionError> {
        let arguments = <[Node; 1]>::try_from(self.arguments()?);
        match arguments {
            Ok([node]) => Ok(node),
            Err(_) => Err(ExpressionError::Arguments {
                function,
                wanted: "1",
            }),
        }
    }

    fn arguments(&mut self) -> Result<Vec<Node>, ExpressionError> {
        self.expect(b'(', "`(`")?;
        let mut arguments = vec![self.sum()?];
        while self.take(b',') {
            arguments.push(self.sum()?);
        }
        self.expect(b')', "`,` or `)`")?;
        Ok(arguments)
    }

    /// The next byte that is not a space.
    fn peek(&mut self) -> Option<u8> {
        while self.text.get(self.position) == Some(&b' ') {
            self.position += 1;
        }
        self.text.get(self.position).copied()
    }

    fn take(&mut self, wanted: u8) -> bool {
        let found = self.peek() == Some(wanted);
        self.position += usize::from(found);
        found
    }

    fn expect(&mut self, wanted: u8, expected: &'static str) -> Result<(), ExpressionError> {
        if self.take(wanted) {
            return Ok(());
        }
        Err(self.unexpected(expected))
    }

    fn run(&mut self, belongs: impl Fn(u8) -> bool) -> String {
        let rest = self.text.get(self.position..).unwrap_or_default();
        let run: Vec<u8> = rest
            .iter()
            .copied()
            .take_while(|byte| belongs(*byte))
            .collect();
        self.position += run.len();
        String::from_utf8_lossy(&run).into_owned()
    }

    fn unexpected(&self, expected: &'static str) -> ExpressionError {
        ExpressionError::Unexpected {
            expected,
            position: self.position,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn millis(source: &str, retried: u32) -> f64 {
        let expression = Expression::parse(source).unwrap_or_else(|e| panic!("{source}: {e}"));
        expression.delay(retried).unwrap().as_secs_f64() * 1000.0
    }

    #[test]
    fn expressions_give_milliseconds() {
        for (source, retried, expected) in [
            ("1000", 0, 1000.0),
            ("1000 * (1 + retried)", 0, 1000.0),
            ("1000 * (1 + retried)", 2, 3000.0),
            ("pow(2, retried) * 1000", 3, 8000.0),
            ("2+3*4", 0, 14.0),
            ("(2+3)*4", 0, 20.0),
            ("20-5-5", 0, 10.0),
            ("100/5/2", 0, 10.0),
            ("--7", 0, 7.0),
            ("10*-retried + 50", 3, 20.0),
            ("max(10, 20, retried)", 30, 30.0),
            ("min(10, 20, retried)", 30, 10.0),
            ("min(5)", 0, 5.0),
            ("floor(2.7)+ceil(2.1)+round(2.5)+abs(-3)+sqrt(16)", 0, 15.0),
            (".5*10", 0, 5.0),
            ("exp(0)", 0, 1.0),
        ] {
            assert!(
                (millis(source, retried) - expected).abs() < 0.001,
                "{source} at {retried}"
            );
        }
    }

    #[test]
    fn a_wait_is_never_negative_nor_longer_than_a_day() {
        let day = 86_400_000.0;
        for (source, expected) in [
            ("-5", 0.0),
            ("1/0", day),
            ("exp(99999)", day),
            ("-1/0", 0.0),
        ] {
            assert!((millis(source, 0) - expected).abs() < 0.001, "{source}");
        }
        assert_eq!(Expression::parse("0/0").unwrap().delay(0), None);
        assert_eq!(Expression::parse("sqrt(-1)").unwrap().delay(0), None);
    }

    #[test]
    fn what_is_no_expression_is_told() {
        for source in [
            "",
            " ",
            "1+",
            "(1",
            "1)",
            "1 2",
            "foo",
            "foo(1)",
            "pow(1)",
            "pow(1,2,3)",
            "exp()",
            "exp(1,2)",
            "exp",
            "1..2",
            ".",
            "1,2",
            "retried()",
            "2^3",
            "+1",
            "Retried",
            "\u{e9}",
        ] {
            assert!(Expression::parse(source).is_err(), "{source:?}");
        }
        assert_eq!(
            Expression::parse(&"(".repeat(100_000)),
            Err(ExpressionError::TooLong)
        );
        assert!(Expression::parse(&"(".repeat(MAX_LENGTH)).is_err());
    }
}
