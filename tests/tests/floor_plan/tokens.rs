//! Rust source cut into tokens, as far as finding paths in it takes: no comments, strings whole,
//! lifetimes apart from characters.

/// A token and its line, from 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Token {
    /// What it is.
    pub(crate) kind: Kind,
    /// Where it begins.
    pub(crate) line: usize,
}

/// Kinds of tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// An identifier or keyword.
    Word(String),
    /// A string's content, escapes as written.
    Text(String),
    /// `::`
    PathSep,
    /// Any other character that is not space. Numbers and characters are left out.
    Mark(char),
}

impl Token {
    /// Whether it is this word.
    pub(crate) fn is_word(&self, word: &str) -> bool {
        matches!(&self.kind, Kind::Word(found) if found == word)
    }

    /// Whether it is this mark.
    pub(crate) fn is_mark(&self, mark: char) -> bool {
        self.kind == Kind::Mark(mark)
    }

    /// The word, if it is one.
    pub(crate) fn word(&self) -> Option<&str> {
        match &self.kind {
            Kind::Word(word) => Some(word),
            _ => None,
        }
    }
}

/// Cuts `source`.
pub(crate) fn tokens(source: &str) -> Vec<Token> {
    let mut cutter = Cutter { chars: source.chars().collect(), at: 0, line: 1, out: Vec::new() };
    while cutter.at < cutter.chars.len() {
        cutter.step();
    }
    cutter.out
}

struct Cutter {
    chars: Vec<char>,
    at: usize,
    line: usize,
    out: Vec<Token>,
}

impl Cutter {
    fn peek(&self, ahead: usize) -> char {
        self.chars.get(self.at + ahead).copied().unwrap_or('\0')
    }

    fn advance(&mut self) -> char {
        let c = self.peek(0);
        self.line += usize::from(c == '\n');
        self.at += 1;
        c
    }

    fn push(&mut self, kind: Kind, line: usize) {
        self.out.push(Token { kind, line });
    }

    fn step(&mut self) {
        let line = self.line;
        match (self.peek(0), self.peek(1)) {
            ('/', '/') => while self.at < self.chars.len() && self.advance() != '\n' {},
            ('/', '*') => self.block_comment(),
            ('"', _) => self.string(),
            ('\'', next) => {
                // 'a' and '\n' are characters, 'a without a second quote is a lifetime.
                if next == '\\' || self.peek(2) == '\'' {
                    self.character();
                } else {
                    self.advance();
                    self.word();
                }
            }
            (c, _) if c.is_alphabetic() || c == '_' => {
                let word = self.word();
                match (word.as_str(), self.peek(0), self.peek(1)) {
                    ("r" | "br" | "cr", '"', _) | ("r" | "br" | "cr", '#', '"' | '#') => self.raw_string(),
                    ("b" | "c", '"', _) => self.string(),
                    ("b", '\'', _) => self.character(),
                    ("r", '#', _) => {
                        self.advance();
                        let word = self.word();
                        self.push(Kind::Word(word), line);
                    }
                    _ => self.push(Kind::Word(word), line),
                }
            }
            (c, _) if c.is_ascii_digit() => {
                self.word();
            }
            (':', ':') => {
                self.at += 2;
                self.push(Kind::PathSep, line);
            }
            _ => {
                let c = self.advance();
                if !c.is_whitespace() {
                    self.push(Kind::Mark(c), line);
                }
            }
        }
    }

    fn word(&mut self) -> String {
        let mut word = String::new();
        while self.peek(0).is_alphanumeric() || self.peek(0) == '_' {
            word.push(self.advance());
        }
        word
    }

    fn block_comment(&mut self) {
        let mut depth = 0;
        while self.at < self.chars.len() {
            match (self.peek(0), self.peek(1)) {
                ('/', '*') => {
                    depth += 1;
                    self.at += 2;
                }
                ('*', '/') => {
                    depth -= 1;
                    self.at += 2;
                    if depth == 0 {
                        return;
                    }
                }
                _ => {
                    self.advance();
                }
            }
        }
    }

    fn string(&mut self) {
        let line = self.line;
        let mut text = String::new();
        self.advance();
        while self.at < self.chars.len() {
            match self.advance() {
                '"' => break,
                '\\' => {
                    text.push('\\');
                    text.push(self.advance());
                }
                c => text.push(c),
            }
        }
        self.push(Kind::Text(text), line);
    }

    fn raw_string(&mut self) {
        let line = self.line;
        let mut hashes = 0;
        while self.peek(0) == '#' {
            hashes += 1;
            self.advance();
        }
        self.advance();
        let mut text = String::new();
        while self.at < self.chars.len() {
            let c = self.advance();
            if c == '"' && (0..hashes).all(|ahead| self.peek(ahead) == '#') {
                self.at += hashes;
                break;
            }
            text.push(c);
        }
        self.push(Kind::Text(text), line);
    }

    fn character(&mut self) {
        self.advance();
        while self.at < self.chars.len() {
            match self.advance() {
                '\'' => return,
                '\\' => {
                    self.advance();
                }
                _ => {}
            }
        }
    }
}

#[test]
fn words_are_found_where_they_are_code() {
    let source = r##"
        // crate::comment
        /* crate /* nested */ ::comment */
        let a = "crate::string"; let b = 'x'; let c = '\''; let d: &'static str = r#"crate::"raw"#;
        #[path = "there.rs"] use crate::real; let e = b'{'; let r#type = 0xffu8;
    "##;
    let found = tokens(source);
    let words: Vec<_> = found.iter().filter_map(Token::word).collect();
    assert_eq!(
        words,
        [
            "let", "a", "let", "b", "let", "c", "let", "d", "str", "path", "use", "crate", "real", "let",
            "e", "let", "type"
        ]
    );
    assert!(found.iter().any(|token| token.kind == Kind::Text("there.rs".into())));
    assert_eq!(found.iter().filter(|token| token.is_mark('{')).count(), 0);
    let real = found.iter().find(|token| token.is_word("real")).unwrap();
    assert_eq!(real.line, 5);
}
