//! Words of a GRUB script: quotes, variables, and the marks between commands.

use super::GrubError;

/// A part of a word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Piece {
    Text(String),
    /// A variable; outside of quotes its value may be several words, or none.
    Variable {
        name: String,
        quoted: bool,
    },
}

/// A word.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Word {
    pub(super) pieces: Vec<Piece>,
    /// A part of it was in quotes, so that it is a word even if it is empty, and no keyword.
    pub(super) quoted: bool,
}

impl Word {
    /// The word if it is nothing but plain letters.
    pub(super) fn bare(&self) -> Option<&str> {
        match &self.pieces[..] {
            [Piece::Text(text)] if !self.quoted => Some(text),
            _ => None,
        }
    }
}

/// What a script is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Token {
    Word(Word),
    /// A new line or a semicolon.
    End,
    Open,
    Close,
}

/// Cuts a script into tokens, each with its line.
pub(super) fn tokens(text: &str) -> Result<Vec<(Token, u32)>, GrubError> {
    let mut lexer = Lexer { rest: text, line: 1, tokens: Vec::new() };
    lexer.all()?;
    Ok(lexer.tokens)
}

struct Lexer<'a> {
    rest: &'a str,
    line: u32,
    tokens: Vec<(Token, u32)>,
}

impl Lexer<'_> {
    fn next(&mut self) -> Option<char> {
        let c = self.rest.chars().next()?;
        self.rest = &self.rest[c.len_utf8()..];
        if c == '\n' {
            self.line += 1;
        }
        Some(c)
    }

    fn error<T>(&self, what: impl Into<String>) -> Result<T, GrubError> {
        Err(GrubError { line: self.line, what: what.into() })
    }

    fn all(&mut self) -> Result<(), GrubError> {
        while let Some(c) = self.rest.chars().next() {
            let line = self.line;
            match c {
                ' ' | '\t' | '\r' => _ = self.next(),
                '\n' | ';' => {
                    self.next();
                    self.tokens.push((Token::End, line));
                }
                '#' => {
                    let end = self.rest.find('\n').unwrap_or(self.rest.len());
                    self.rest = &self.rest[end..];
                }
                '|' | '&' | '<' | '>' => return self.error(format!("{c:?} between words")),
                _ if self.rest.starts_with("\\\n") => {
                    self.next();
                    self.next();
                }
                _ => {
                    let word = self.word()?;
                    let token = match word.bare() {
                        Some("{") => Token::Open,
                        Some("}") => Token::Close,
                        _ => Token::Word(word),
                    };
                    self.tokens.push((token, line));
                }
            }
        }
        self.tokens.push((Token::End, self.line));
        Ok(())
    }

    fn word(&mut self) -> Result<Word, GrubError> {
        let mut word = Word::default();
        let mut text = String::new();
        while let Some(c) = self.rest.chars().next() {
            match c {
                ' ' | '\t' | '\r' | '\n' | ';' | '|' | '&' | '<' | '>' => break,
                '\\' => {
                    self.next();
                    match self.next() {
                        Some('\n') => {}
                        Some(c) => text.push(c),
                        None => return self.error("a backslash at the end"),
                    }
                }
                '\'' => {
                    self.next();
                    word.quoted = true;
                    let Some(end) = self.rest.find('\'') else {
                        return self.error("a quote that is not closed");
                    };
                    for _ in self.rest[..end].chars().collect::<Vec<_>>() {
                        text.extend(self.next());
                    }
                    self.next();
                }
                '"' => {
                    self.next();
                    word.quoted = true;
                    self.double(&mut word, &mut text)?;
                }
                '$' => self.variable(&mut word, &mut text, false)?,
                c => {
                    self.next();
                    text.push(c);
                }
            }
        }
        flush(&mut word, &mut text);
        Ok(word)
    }

    /// What follows a double quote, up to the closing one.
    fn double(&mut self, word: &mut Word, text: &mut String) -> Result<(), GrubError> {
        loop {
            match self.rest.chars().next() {
                None => return self.error("a quote that is not closed"),
                Some('"') => {
                    self.next();
                    return Ok(());
                }
                Some('$') => self.variable(word, text, true)?,
                Some('\\') => {
                    self.next();
                    match self.next() {
                        Some('\n') => {}
                        Some(c @ ('$' | '"' | '\\')) => text.push(c),
                        Some(c) => text.extend(['\\', c]),
                        None => return self.error("a quote that is not closed"),
                    }
                }
                Some(c) => {
                    self.next();
                    text.push(c);
                }
            }
        }
    }

    fn variable(&mut self, word: &mut Word, text: &mut String, quoted: bool) -> Result<(), GrubError> {
        self.next();
        let named = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let rest = self.rest;
        let (name, behind) = if let Some(inner) = rest.strip_prefix('{') {
            match inner.split_once('}') {
                Some(found) => found,
                None => return self.error("a variable that is not closed"),
            }
        } else if rest.starts_with(['?', '@', '#', '*']) {
            rest.split_at(1)
        } else if rest.starts_with(|c: char| c.is_ascii_digit()) {
            rest.split_at(rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len()))
        } else {
            rest.split_at(rest.find(|c| !named(c)).unwrap_or(rest.len()))
        };
        if name.is_empty() {
            // Before a quote it marks a text that is translated.
            if quoted || !rest.starts_with(['"', '\'']) {
                text.push('$');
            }
            return Ok(());
        }
        if !name.chars().all(|c| named(c) || matches!(c, '?' | '@' | '#' | '*')) {
            return self.error(format!("the variable {name:?}"));
        }
        flush(word, text);
        word.pieces.push(Piece::Variable { name: name.to_owned(), quoted });
        self.rest = behind;
        Ok(())
    }
}

fn flush(word: &mut Word, text: &mut String) {
    if !text.is_empty() {
        word.pieces.push(Piece::Text(std::mem::take(text)));
    }
}
