//! An opcode and its modifiers.

/// The result of decoding one instruction; the error says what is unsupported.
pub(super) type Decoded<T = ()> = Result<T, String>;

/// An opcode split at its dots. Decoding takes the modifiers one by one; one that is left is unsupported.
pub(super) struct Opcode<'a> {
    pub base: &'a str,
    pub modifiers: Vec<&'a str>,
}

impl<'a> Opcode<'a> {
    pub fn new(text: &'a str) -> Self {
        let mut parts = text.split('.');
        Self { base: parts.next().unwrap_or(""), modifiers: parts.collect() }
    }

    /// Takes a modifier and returns whether it was there.
    pub fn take(&mut self, name: &str) -> bool {
        match self.modifiers.iter().position(|m| *m == name) {
            Some(i) => {
                self.modifiers.remove(i);
                true
            }
            None => false,
        }
    }

    /// Takes the first modifier for which `f` returns a value, and returns the value.
    pub fn find<T>(&mut self, f: impl Fn(&str) -> Option<T>) -> Option<T> {
        let (i, value) = self.modifiers.iter().enumerate().find_map(|(i, m)| f(m).map(|v| (i, v)))?;
        self.modifiers.remove(i);
        Some(value)
    }

    /// Takes the last modifier, which is the type.
    pub fn last(&mut self) -> Decoded<&'a str> {
        self.modifiers.pop().ok_or_else(|| "a type is missing".to_owned())
    }

    /// Checks that every modifier was taken.
    pub fn done(&self) -> Decoded {
        match self.modifiers.first() {
            Some(m) => Err(format!("`{}` with `.{m}`", self.base)),
            None => Ok(()),
        }
    }
}
