//! The grammar of bpftrace (`src/parser.yy`, 0.17 to 0.23), as far as policy needs it: pure.
//!
//! It recognises the whole program and keeps what the rules ask about: hooks, calls, names, settings. It keeps no tree: which operator
//! binds tighter changes nothing of what a program can do.

use super::{
    Fault,
    lexer::{Kind, Lexer, Token, clip, positional},
    rules::REPEATS,
};

/// How deep blocks, brackets and operators may nest; the parser and bpftrace recurse over them.
const DEPTH: usize = 64;
/// Operators in one expression; bpftrace recurses over them.
const OPERATORS: usize = 512;
/// How often loops that are unrolled within each other repeat what stands in them.
const UNROLLED: u64 = 1000;
/// How often a loop that is not unrolled is taken to go round, where it matters what it prints.
const ROUNDS: u64 = 1000;
/// Statements of a program, counted as often as they are unrolled.
const STATEMENTS: u64 = 16_384;

/// What a program does.
#[derive(Debug, Default)]
pub(super) struct Script<'a> {
    pub probes: Vec<Probe<'a>>,
    pub calls: Vec<Call<'a>>,
    /// Words that are no calls, fields, types or keywords.
    pub names: Vec<Token<'a>>,
    /// Words that stand for types, and words in brackets that might.
    pub types: Vec<Token<'a>>,
    /// Of `config` blocks: key and value.
    pub settings: Vec<(Token<'a>, Token<'a>)>,
    /// Of `unroll (N)`, and how many keys a map is declared with.
    pub repeats: Vec<Token<'a>>,
    pub map_sizes: Vec<Token<'a>>,
    /// Constants of the program's own enums.
    pub constants: Vec<&'a str>,
    /// Where it reads memory, or says how memory is to be read.
    pub reads: Vec<Read<'a>>,
    /// What variables and maps are set to.
    pub assigned: Vec<(&'a str, Shape<'a>)>,
}

/// One probe of a program.
#[derive(Debug)]
pub(super) struct Probe<'a> {
    pub hooks: Vec<Token<'a>>,
}

/// A function that is called.
#[derive(Clone, Copy, Debug)]
pub(super) struct Call<'a> {
    pub name: Token<'a>,
    /// The probe whose body it stands in.
    pub probe: usize,
    /// It does not happen at each event: there is a predicate, an `if` or a `?`.
    pub conditional: bool,
    /// How often the loops around it are unrolled, or taken to go round.
    pub times: u64,
}

/// A place where memory is read, or would be by what stands there.
#[derive(Clone, Copy, Debug)]
pub(super) struct Read<'a> {
    pub at: usize,
    /// The probe whose body it stands in; `None` outside of probes.
    pub probe: Option<usize>,
    pub how: How<'a>,
}

/// How memory is read.
#[derive(Clone, Copy, Debug)]
pub(super) enum How<'a> {
    /// By a function of this name, at what its first argument is.
    Call(&'a str, Shape<'a>),
    /// `*x`, so many times.
    Star(Shape<'a>, usize),
    /// `x[1]`, where x is no map.
    Index(Shape<'a>),
    /// `(struct x *)y`: as what, and what.
    Cast(&'a str, Shape<'a>),
    /// A field of this name, and of what.
    Field(&'a str, Shape<'a>),
    /// A struct or union of the program's own.
    Definition,
}

/// What an expression looks like, as far as it tells where a pointer comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Shape<'a> {
    /// The word, variable or map that it begins with, `(` for brackets; empty for what is neither this nor fields of it.
    pub root: &'a str,
    /// The last of the fields behind it; empty if there is none.
    pub field: &'a str,
    /// There is more than one.
    pub deep: bool,
    /// There are elements of arrays among them.
    pub indexed: bool,
}

/// Functions that read memory at their argument.
const READERS: &[&str] = &["str", "buf", "join", "macaddr", "uptr"];
/// The [`Shape::root`] of what was cast to a pointer, and nothing else done with it.
pub(super) const CAST: &str = "(cast)";

/// Reads a whole program.
pub(super) fn parse(text: &str, takes_path: fn(&str) -> bool) -> Result<Script<'_>, Fault> {
    let mut lexer = Lexer::new(text)?;
    let token = first(&mut lexer, text)?;
    let mut parser = Parser {
        lexer,
        token,
        takes_path,
        script: Script::default(),
        depth: 0,
        operators: 0,
        branches: 0,
        times: 1,
        rounds: 1,
        statements: 0,
        shape: Shape::default(),
    };
    while parser.token.kind != Kind::End {
        parser.item()?;
    }
    if parser.script.probes.is_empty() {
        return Err(parser.expected("a probe, such as: BEGIN { exit(); }"));
    }
    Ok(parser.script)
}

fn first<'a>(lexer: &mut Lexer<'a>, text: &'a str) -> Result<Token<'a>, Fault> {
    if text.starts_with('-') {
        return Err(Fault::syntax(0, "this is an option of bpftrace, not a program"));
    }
    lexer.next()
}

struct Parser<'a> {
    lexer: Lexer<'a>,
    /// The next token; the lexer stands behind it.
    token: Token<'a>,
    takes_path: fn(&str) -> bool,
    script: Script<'a>,
    depth: usize,
    operators: usize,
    /// Predicates, `if`s and `?`s around.
    branches: usize,
    /// How often the loops around are unrolled.
    times: u64,
    /// How often the other loops around are taken to go round.
    rounds: u64,
    /// Those read so far, as often as they are unrolled.
    statements: u64,
    /// Of the expression that was read last.
    shape: Shape<'a>,
}

type Parsed = Result<(), Fault>;

impl<'a> Parser<'a> {
    fn item(&mut self) -> Parsed {
        match self.token.text {
            "struct" | "union" => self.definition(),
            "enum" => self.enumeration(),
            "config" => self.config(),
            "let" => self.map_declaration(),
            "import" | "macro" | "fn" | "subprog" => Err(self.no_definitions()),
            _ => self.probe(),
        }
    }

    fn no_definitions(&self) -> Fault {
        let what = clip(self.token.text);
        Fault::policy(self.token.at, format!("`{what}` is refused: what it brings in cannot be seen where it is used"))
            .remedy("write the code into the probe itself")
    }

    /// `struct x { int a; char b[16]; };`
    fn definition(&mut self) -> Parsed {
        let begins = self.token;
        self.script.reads.push(Read { at: begins.at, probe: None, how: How::Definition });
        self.advance()?;
        self.word("the name of the struct")?;
        if !self.token.is("{") {
            return Err(self.expected("`{` and the fields of the struct"));
        }
        self.fields()?;
        self.without_comments(begins)?;
        self.accept(";").map(drop)
    }

    /// bpftrace looks for the end of a struct without knowing comments: a brace in one ends it, and the rest is code.
    fn without_comments(&self, from: Token<'a>) -> Parsed {
        let text = self.lexer.between(from, self.token);
        let end = text.rfind('}').unwrap_or(text.len());
        match text[..end].find('/') {
            Some(at) => Err(Fault::policy(
                from.at + at,
                "comments inside of a struct or enum are refused: bpftrace reads on in them",
            )
            .remedy("put the comment before it")),
            None => Ok(()),
        }
    }

    /// Between braces; nothing but types, names, sizes and further structs.
    fn fields(&mut self) -> Parsed {
        self.deeper()?;
        self.need("{")?;
        while !self.token.is("}") {
            match (self.token.kind, self.token.text) {
                (Kind::Word | Kind::Number, _) | (Kind::Sign, "*" | "[" | "]" | ";" | "," | ":") => self.advance()?,
                (Kind::Sign, "{") => self.fields()?,
                _ => return Err(self.expected("a field such as `int x;`, or `}`")),
            }
        }
        self.depth -= 1;
        self.advance()
    }

    /// `enum x { A = 1, B };`
    fn enumeration(&mut self) -> Parsed {
        let begins = self.token;
        self.advance()?;
        if self.token.kind == Kind::Word {
            self.advance()?;
        }
        self.need("{")?;
        while !self.token.is("}") {
            let name = self.word("the name of a constant")?;
            self.script.constants.push(name.text);
            if self.accept("=")? {
                self.accept("-")?;
                self.number()?;
            }
            if !self.token.is("}") {
                self.need(",")?;
            }
        }
        self.advance()?;
        self.without_comments(begins)?;
        self.accept(";").map(drop)
    }

    /// `config = { stack_mode = perf; }`
    fn config(&mut self) -> Parsed {
        self.advance()?;
        self.need("=")?;
        self.need("{")?;
        while !self.token.is("}") {
            let key = self.word("the name of a setting")?;
            self.need("=")?;
            let value = self.token;
            if !matches!(value.kind, Kind::Word | Kind::Number | Kind::Text) {
                return Err(self.expected("the value of the setting"));
            }
            self.advance()?;
            self.script.settings.push((key, value));
            if !self.token.is("}") && !self.accept(",")? {
                self.need(";")?;
            }
        }
        self.advance()?;
        self.accept(";").map(drop)
    }

    /// `let @x = lruhash(100);`
    fn map_declaration(&mut self) -> Parsed {
        self.advance()?;
        if self.token.kind != Kind::Map {
            return Err(self.expected("a map, such as @x"));
        }
        self.advance()?;
        self.need("=")?;
        self.word("the kind of the map")?;
        self.need("(")?;
        let size = self.number()?;
        self.script.map_sizes.push(size);
        self.need(")")?;
        self.need(";")
    }

    fn probe(&mut self) -> Parsed {
        let mut probe = Probe { hooks: vec![self.hook()?] };
        while self.accept(",")? {
            probe.hooks.push(self.hook()?);
        }
        self.script.probes.push(probe);
        self.branches = 0;
        if self.accept("/")? {
            self.branches = 1;
            self.expression()?;
            self.need("/")?;
        }
        self.block()
    }

    fn hook(&mut self) -> Result<Token<'a>, Fault> {
        if self.token.kind != Kind::Word {
            return Err(self.expected("the name of a probe"));
        }
        self.lexer.back_to(self.token);
        let hook = self.lexer.attach_point(self.takes_path)?;
        self.advance()?;
        Ok(hook)
    }

    fn block(&mut self) -> Parsed {
        self.deeper()?;
        self.need("{")?;
        while !self.token.is("}") {
            self.statement()?;
        }
        self.depth -= 1;
        self.advance()
    }

    fn statement(&mut self) -> Parsed {
        self.statements = self.statements.saturating_add(self.times);
        if self.statements > STATEMENTS {
            return Err(self.too("long a program", STATEMENTS as usize, "statements, unrolled,"));
        }
        if self.token.is("{") {
            return self.block();
        }
        if self.accept(";")? {
            return Ok(());
        }
        let keyword = if self.token.kind == Kind::Word { self.token.text } else { "" };
        match keyword {
            "if" => return self.branch(),
            "while" => return self.advance().and_then(|()| self.expression()).and_then(|()| self.again_and_again()),
            "unroll" => return self.unroll(),
            "for" => return self.each(),
            "let" => self.variable_declaration()?,
            "return" => self.give_back()?,
            "break" | "continue" => self.advance()?,
            _ => self.assignment()?,
        }
        if self.token.is("}") { Ok(()) } else { self.need(";") }
    }

    fn branch(&mut self) -> Parsed {
        self.deeper()?;
        self.branches += 1;
        self.advance()?;
        self.expression()?;
        self.block()?;
        if self.token.is_word("else") {
            self.advance()?;
            if self.token.is_word("if") { self.branch()? } else { self.block()? }
        }
        self.branches -= 1;
        self.depth -= 1;
        Ok(())
    }

    /// `unroll (5) { … }`
    fn unroll(&mut self) -> Parsed {
        self.advance()?;
        let bracket = self.accept("(")?;
        let times = self.number()?;
        self.script.repeats.push(times);
        if bracket {
            self.need(")")?;
        }
        let outer = self.times;
        // What is no number of plain digits, or too large by itself, is for the rules to refuse.
        self.times = outer.saturating_mul(times.text.parse().unwrap_or(1).clamp(1, REPEATS));
        if self.times > UNROLLED {
            let message =
                format!("loops in each other are unrolled at most {UNROLLED} times together, not {}", self.times);
            return Err(Fault::policy(times.at, message).remedy("unroll less, or use while"));
        }
        self.block()?;
        self.times = outer;
        Ok(())
    }

    /// `for ($x : @map) { … }`, `for $i : 0..10 { … }`
    fn each(&mut self) -> Parsed {
        self.advance()?;
        let bracket = self.accept("(")?;
        if self.token.kind != Kind::Variable {
            return Err(self.expected("a variable, such as $x"));
        }
        self.set(self.token.text, Shape::default());
        self.advance()?;
        self.need(":")?;
        self.expression()?;
        if self.accept("..")? {
            self.expression()?;
        }
        if bracket {
            self.need(")")?;
        }
        self.again_and_again()
    }

    /// The body of a loop of which nobody knows beforehand how often it goes round.
    fn again_and_again(&mut self) -> Parsed {
        let outer = self.rounds;
        self.rounds = outer.saturating_mul(ROUNDS);
        self.block()?;
        self.rounds = outer;
        Ok(())
    }

    /// `let $x: uint64 = 1`
    fn variable_declaration(&mut self) -> Parsed {
        self.advance()?;
        if !matches!(self.token.kind, Kind::Variable | Kind::Map) {
            return Err(self.expected("a variable, such as $x"));
        }
        let name = self.token.text;
        self.advance()?;
        if self.accept(":")? && !self.type_name()? {
            return Err(self.expected("a type"));
        }
        if self.accept("=")? { self.value_of(name, true) } else { Ok(()) }
    }

    fn give_back(&mut self) -> Parsed {
        self.advance()?;
        if self.token.is(";") || self.token.is("}") { Ok(()) } else { self.expression() }
    }

    /// `delete @x[1]`, a call, or `@x = …`.
    fn assignment(&mut self) -> Parsed {
        if self.token.is_word("delete") {
            let name = self.token;
            let mut ahead = self.lexer;
            if ahead.next()?.kind == Kind::Map {
                self.advance()?;
                self.call(name);
            }
        }
        self.expression()?;
        let (name, sign) = (self.shape.root, self.token);
        let assigns =
            sign.kind == Kind::Sign && sign.text.ends_with('=') && !matches!(sign.text, "==" | "!=" | "<=" | ">=");
        if !assigns {
            return Ok(());
        }
        settable(sign.at, self.shape)?;
        self.advance().and_then(|()| self.value_of(name, sign.is("=")))
    }

    /// What a variable or map is set to: itself, or something that is made with it.
    fn value_of(&mut self, name: &'a str, itself: bool) -> Parsed {
        self.expression()?;
        let shape = if itself { self.shape } else { Shape::default() };
        self.set(name, shape);
        Ok(())
    }

    fn set(&mut self, name: &'a str, shape: Shape<'a>) {
        self.script.assigned.push((name, shape));
    }

    /// Operands with operators between them, and what a `?` chooses from.
    fn expression(&mut self) -> Parsed {
        self.deeper()?;
        let outer = std::mem::take(&mut self.operators);
        self.operand()?;
        let mut shape = self.shape;
        while self.at_operator()? {
            self.operators += 1;
            if self.operators > OPERATORS {
                return Err(self.too("long an expression", OPERATORS, "operators"));
            }
            self.advance()?;
            self.operand()?;
            shape = Shape::default();
        }
        if self.accept("?")? {
            shape = Shape::default();
            self.branches += 1;
            self.expression()?;
            self.need(":")?;
            self.expression()?;
            self.branches -= 1;
        }
        self.operators = outer;
        self.depth -= 1;
        self.shape = shape;
        Ok(())
    }

    fn at_operator(&self) -> Result<bool, Fault> {
        const OPERATORS: &[&str] =
            &["||", "&&", "|", "^", "&", "==", "!=", "<", "<=", ">", ">=", "<<", ">>", "+", "-", "*", "/", "%"];
        let ends_predicate = self.token.is("/") && self.lexer.at_body()?;
        Ok(self.token.kind == Kind::Sign && OPERATORS.contains(&self.token.text) && !ends_predicate)
    }

    fn operand(&mut self) -> Parsed {
        let outer = self.depth;
        let begins = self.token;
        let (mut casts, mut stars, mut changes, mut plain) = (Vec::new(), 0, false, true);
        // Signs before casts, and between a cast and its operand: a pointer that is reckoned with is another.
        let (mut before, mut between) = (false, false);
        loop {
            self.deeper()?;
            let at = self.token.at;
            let prefix =
                self.token.kind == Kind::Sign && ["!", "~", "-", "+", "*", "&", "++", "--"].contains(&self.token.text);
            if prefix {
                stars += usize::from(self.token.is("*"));
                changes |= self.token.is("++") || self.token.is("--");
                before |= casts.is_empty();
                between |= !casts.is_empty();
                self.advance()?;
            } else if let Some(target) = self.cast()? {
                casts.push((at, target));
            } else {
                break;
            }
            plain = false;
        }
        self.primary()?;
        while self.postfix()? {}
        self.depth = outer;
        let shape = self.shape;
        let to_pointer = casts.first().is_some_and(|(_, target): &(usize, &str)| target.contains('*'));
        for (at, target) in casts {
            self.read(at, How::Cast(target, if between { Shape::default() } else { shape }));
        }
        if stars > 0 {
            self.read(begins.at, How::Star(shape, stars));
        }
        if changes {
            settable(begins.at, shape)?;
            self.set(shape.root, Shape::default());
        }
        if !plain {
            let root = if to_pointer && !before && !between { CAST } else { "" };
            self.begin(root);
        }
        Ok(())
    }

    fn read(&mut self, at: usize, how: How<'a>) {
        let probe = self.script.probes.len().checked_sub(1);
        self.script.reads.push(Read { at, probe, how });
    }

    /// The type in `(struct x *)` or `(uint64)`, if it is one: then something to be cast follows.
    fn cast(&mut self) -> Result<Option<&'a str>, Fault> {
        let (lexer, token) = (self.lexer, self.token);
        if self.accept("(")? {
            let begins = self.token;
            if self.type_name()? && self.token.is(")") {
                let target = self.lexer_text(begins);
                let bare = target == begins.text;
                self.advance()?;
                let follows = self.token.kind != Kind::Sign || self.token.is("(");
                if !bare || (follows && self.token.kind != Kind::End) {
                    return Ok(Some(target));
                }
            }
        }
        (self.lexer, self.token) = (lexer, token);
        Ok(None)
    }

    /// From a token to before the present one, without the blanks between.
    fn lexer_text(&self, from: Token<'a>) -> &'a str {
        self.lexer.between(from, self.token).trim_end()
    }

    /// `uint64`, `struct x *`, `char[16]`; false, and nothing taken that matters, if it is none.
    fn type_name(&mut self) -> Result<bool, Fault> {
        if ["struct", "union", "enum"].iter().any(|word| self.token.is_word(word)) {
            self.advance()?;
        }
        if self.token.kind != Kind::Word {
            return Ok(false);
        }
        self.script.types.push(self.token);
        self.advance()?;
        // `unsigned long`
        while self.token.kind == Kind::Word {
            self.advance()?;
        }
        while self.accept("*")? {}
        while self.accept("[")? {
            if self.token.kind == Kind::Number {
                self.advance()?;
            }
            if !self.accept("]")? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn primary(&mut self) -> Parsed {
        let token = self.token;
        self.shape = Shape::default();
        match token.kind {
            Kind::Number | Kind::Text => self.advance(),
            Kind::Variable => self.root(token),
            Kind::Map => self.map(token),
            Kind::Positional => Err(positional(token.at)),
            Kind::Word => self.name(),
            Kind::Sign if token.text == "(" => self.list("(", ")").map(|first| {
                let is_cast = first.root == CAST && first.field.is_empty();
                self.begin(if is_cast { CAST } else { "(" });
            }),
            Kind::Sign | Kind::End => Err(self.expected("a value")),
        }
    }

    fn begin(&mut self, root: &'a str) {
        self.shape = Shape { root, ..Shape::default() };
    }

    fn root(&mut self, token: Token<'a>) -> Parsed {
        self.advance()?;
        self.begin(token.text);
        Ok(())
    }

    /// With its keys.
    fn map(&mut self, token: Token<'a>) -> Parsed {
        self.advance()?;
        if self.token.is("[") {
            self.list("[", "]")?;
        }
        self.begin(token.text);
        Ok(())
    }

    fn name(&mut self) -> Parsed {
        let name = self.token;
        self.root(name)?;
        if !self.token.is("(") {
            self.script.names.push(name);
            return Ok(());
        }
        self.call(name);
        if ["sizeof", "offsetof"].contains(&name.text) && self.of_type()? {
            return Ok(());
        }
        let first = self.list("(", ")")?;
        if READERS.contains(&name.text) {
            self.read(name.at, How::Call(name.text, first));
        }
        self.begin(name.text);
        Ok(())
    }

    fn call(&mut self, name: Token<'a>) {
        let probe = self.script.probes.len() - 1;
        let times = self.times.saturating_mul(self.rounds);
        self.script.calls.push(Call { name, probe, conditional: self.branches > 0, times });
    }

    /// `(struct x)` of `sizeof`, `(struct x, a.b)` of `offsetof`.
    fn of_type(&mut self) -> Result<bool, Fault> {
        let (lexer, token) = (self.lexer, self.token);
        self.need("(")?;
        if self.type_name()? {
            if self.accept(",")? {
                self.word("a field")?;
                while self.accept(".")? {
                    self.word("a field")?;
                }
            }
            if self.accept(")")? {
                return Ok(true);
            }
        }
        (self.lexer, self.token) = (lexer, token);
        Ok(false)
    }

    /// Arguments, keys, or the parts of a tuple; gives what the first one looks like.
    fn list(&mut self, open: &str, close: &str) -> Result<Shape<'a>, Fault> {
        self.need(open)?;
        let mut first = None;
        while !self.token.is(close) {
            self.expression()?;
            first.get_or_insert(self.shape);
            if !self.token.is(close) {
                self.need(",")?;
            }
        }
        self.advance()?;
        Ok(first.unwrap_or_default())
    }

    /// `[…]`, `->field`, `.field`, `.0`, `++`.
    fn postfix(&mut self) -> Result<bool, Fault> {
        let (shape, at) = (self.shape, self.token.at);
        if self.token.is("[") {
            self.list("[", "]")?;
            self.read(at, How::Index(shape));
            self.shape = Shape { indexed: true, ..shape };
            return Ok(true);
        }
        if self.accept("++")? || self.accept("--")? {
            settable(at, shape)?;
            self.set(shape.root, Shape::default());
            return Ok(true);
        }
        if !self.accept("->")? && !self.accept(".")? {
            return Ok(false);
        }
        let field = self.token;
        if !matches!(field.kind, Kind::Word | Kind::Number) {
            return Err(self.expected("the name of a field"));
        }
        self.advance()?;
        self.read(field.at, How::Field(field.text, shape));
        self.shape = Shape { field: field.text, deep: !shape.field.is_empty(), ..shape };
        Ok(true)
    }

    fn advance(&mut self) -> Parsed {
        self.token = self.lexer.next()?;
        Ok(())
    }

    fn accept(&mut self, sign: &str) -> Result<bool, Fault> {
        let is_here = self.token.is(sign);
        if is_here {
            self.advance()?;
        }
        Ok(is_here)
    }

    fn need(&mut self, sign: &str) -> Parsed {
        if self.accept(sign)? { Ok(()) } else { Err(self.expected(&format!("`{sign}`"))) }
    }

    fn word(&mut self, what: &str) -> Result<Token<'a>, Fault> {
        self.some(Kind::Word, what)
    }

    fn number(&mut self) -> Result<Token<'a>, Fault> {
        self.some(Kind::Number, "a number")
    }

    fn some(&mut self, kind: Kind, what: &str) -> Result<Token<'a>, Fault> {
        let token = self.token;
        if token.kind != kind {
            return Err(self.expected(what));
        }
        self.advance()?;
        Ok(token)
    }

    fn deeper(&mut self) -> Parsed {
        self.depth += 1;
        if self.depth > DEPTH { Err(self.too("deep a nesting", DEPTH, "levels")) } else { Ok(()) }
    }

    fn too(&self, what: &str, most: usize, unit: &str) -> Fault {
        Fault::policy(self.token.at, format!("too {what}: at most {most} {unit} are taken")).remedy("write it flatter")
    }

    fn expected(&self, what: &str) -> Fault {
        let found = match self.token.kind {
            Kind::End => "the end of the program".to_owned(),
            _ => format!("`{}`", clip(self.token.text)),
        };
        Fault::syntax(self.token.at, format!("unexpected {found}: expected {what}"))
    }
}

/// A variable or a map. What stands in brackets is none: it would be set without being known by its name.
fn settable(at: usize, shape: Shape<'_>) -> Parsed {
    let message = "only a variable or a map can be set, such as $x or @x[1]";
    if shape.root.starts_with(['$', '@']) { Ok(()) } else { Err(Fault::syntax(at, message)) }
}
