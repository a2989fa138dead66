//! The commands of a GRUB script.

use std::rc::Rc;

use super::GrubError;
use super::words::{Token, Word, tokens};

/// Commands one after the other.
pub(super) type Block = Vec<Command>;

/// A command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Command {
    Simple {
        words: Vec<Word>,
        line: u32,
    },
    /// `menuentry` and `submenu`.
    Entry {
        submenu: bool,
        words: Vec<Word>,
        body: Rc<Block>,
        line: u32,
    },
    If {
        cases: Vec<(Block, Block)>,
        otherwise: Block,
    },
    For {
        name: String,
        words: Vec<Word>,
        body: Block,
    },
    Loop {
        until: bool,
        condition: Block,
        body: Block,
    },
    Function {
        name: String,
        body: Rc<Block>,
    },
}

/// Deepest nesting.
const DEPTH_MAX: u32 = 50;

/// Reads a script.
pub(super) fn parse(text: &str) -> Result<Block, GrubError> {
    let tokens = tokens(text)?;
    let mut parser = Parser { tokens: &tokens, at: 0, depth: 0 };
    let block = parser.block(&[])?;
    match parser.peek() {
        None => Ok(block),
        Some(_) => parser.error("an end without a beginning"),
    }
}

struct Parser<'a> {
    tokens: &'a [(Token, u32)],
    at: usize,
    depth: u32,
}

const RESERVED: [&str; 8] = ["then", "elif", "else", "fi", "do", "done", "}", "in"];

impl<'a> Parser<'a> {
    fn peek(&self) -> Option<&'a Token> {
        self.tokens.get(self.at).map(|(token, _)| token)
    }

    fn line(&self) -> u32 {
        self.tokens.get(self.at).or(self.tokens.last()).map_or(0, |(_, line)| *line)
    }

    fn error<T>(&self, what: impl Into<String>) -> Result<T, GrubError> {
        Err(GrubError { line: self.line(), what: what.into() })
    }

    /// The plain word that comes next.
    fn bare(&self) -> Option<&'a str> {
        match self.peek()? {
            Token::Word(word) => word.bare(),
            Token::Close => Some("}"),
            _ => None,
        }
    }

    fn expect(&mut self, word: &str) -> Result<(), GrubError> {
        if self.bare() == Some(word) {
            self.at += 1;
            return Ok(());
        }
        self.error(format!("{word:?} is missing"))
    }

    /// Commands up to one of these words, which is not taken.
    fn block(&mut self, ends: &[&str]) -> Result<Block, GrubError> {
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return self.error("commands too deep in one another");
        }
        let mut block = Block::new();
        loop {
            while self.peek() == Some(&Token::End) {
                self.at += 1;
            }
            if self.peek().is_none() {
                break;
            }
            if let Some(word) = self.bare() {
                if ends.contains(&word) {
                    break;
                }
                if RESERVED[..7].contains(&word) {
                    return self.error(format!("{word:?} without a beginning"));
                }
            }
            block.push(self.command()?);
        }
        self.depth -= 1;
        Ok(block)
    }

    fn command(&mut self) -> Result<Command, GrubError> {
        match self.bare() {
            Some("if") => self.conditional(),
            Some("for") => self.repetition(),
            Some(word @ ("while" | "until")) => {
                self.at += 1;
                let condition = self.block(&["do"])?;
                self.expect("do")?;
                let body = self.block(&["done"])?;
                self.expect("done")?;
                Ok(Command::Loop { until: word == "until", condition, body })
            }
            Some("function") => {
                self.at += 1;
                let Some(name) = self.bare() else { return self.error("a function without a name") };
                self.at += 1;
                Ok(Command::Function { name: name.to_owned(), body: Rc::new(self.braces()?) })
            }
            _ => self.simple(),
        }
    }

    fn braces(&mut self) -> Result<Block, GrubError> {
        while self.peek() == Some(&Token::End) {
            self.at += 1;
        }
        if self.peek() != Some(&Token::Open) {
            return self.error("\"{\" is missing");
        }
        self.at += 1;
        let body = self.block(&["}"])?;
        self.expect("}")?;
        Ok(body)
    }

    fn conditional(&mut self) -> Result<Command, GrubError> {
        let mut cases = Vec::new();
        loop {
            self.at += 1;
            let condition = self.block(&["then"])?;
            self.expect("then")?;
            cases.push((condition, self.block(&["elif", "else", "fi"])?));
            if self.bare() != Some("elif") {
                break;
            }
        }
        let mut otherwise = Block::new();
        if self.bare() == Some("else") {
            self.at += 1;
            otherwise = self.block(&["fi"])?;
        }
        self.expect("fi")?;
        Ok(Command::If { cases, otherwise })
    }

    fn repetition(&mut self) -> Result<Command, GrubError> {
        self.at += 1;
        let Some(name) = self.bare() else { return self.error("a loop without a variable") };
        self.at += 1;
        self.expect("in")?;
        let words = self.words();
        while self.peek() == Some(&Token::End) {
            self.at += 1;
        }
        self.expect("do")?;
        let body = self.block(&["done"])?;
        self.expect("done")?;
        Ok(Command::For { name: name.to_owned(), words, body })
    }

    /// Words up to a mark.
    fn words(&mut self) -> Vec<Word> {
        let mut words = Vec::new();
        while let Some(Token::Word(word)) = self.peek() {
            words.push(word.clone());
            self.at += 1;
        }
        words
    }

    fn simple(&mut self) -> Result<Command, GrubError> {
        let line = self.line();
        let words = self.words();
        let Some(first) = words.first() else { return self.error("\"{\" without a command") };
        let name = first.bare();
        if self.peek() != Some(&Token::Open) {
            return Ok(Command::Simple { words, line });
        }
        let Some(submenu) =
            name.filter(|name| matches!(*name, "menuentry" | "submenu")).map(|name| name == "submenu")
        else {
            return self.error("\"{\" after a command that has no body");
        };
        let body = Rc::new(self.braces()?);
        Ok(Command::Entry { submenu, words: words[1..].to_vec(), body, line })
    }
}
