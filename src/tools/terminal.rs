//! Output of the sub-commands: lines, and on a terminal a block that is redrawn in place.

use std::io::{self, IsTerminal, Write};

use super::language::translated;

/// An output for people. A closed pipe is not an error.
pub(super) struct Terminal {
    out: Box<dyn Write>,
    is_interactive: bool,
    /// Lines of the block that is on the screen now.
    drawn_lines: usize,
}

impl Terminal {
    pub(super) fn stdout() -> Self {
        Self::new(io::stdout())
    }

    pub(super) fn stderr() -> Self {
        Self::new(io::stderr())
    }

    fn new(out: impl Write + IsTerminal + 'static) -> Self {
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        // The old Windows console shows control sequences as text; Windows Terminal sets WT_SESSION.
        let old_console = cfg!(windows) && std::env::var_os("WT_SESSION").is_none();
        let is_interactive = out.is_terminal() && !dumb && !old_console;
        Self { is_interactive, out: Box::new(out), drawn_lines: 0 }
    }

    /// True when [`Self::redraw`] shows anything.
    pub(super) fn is_interactive(&self) -> bool {
        self.is_interactive
    }

    /// Prints a line in the place of the block.
    pub(super) fn print_line(&mut self, line: &str) {
        let text = format!("{}{line}\n", self.erase());
        self.write(&text);
    }

    /// Prints a line in the language of this process.
    pub(super) fn say(&mut self, line: &str) {
        self.print_line(&translated(line));
    }

    /// Prints lines below an empty line and a heading in the language of this process; nothing when there are none.
    pub(super) fn print_list(&mut self, heading: &str, mark: &str, lines: &[String]) {
        if !lines.is_empty() {
            self.print_line("");
            self.say(heading);
        }
        lines.iter().for_each(|line| self.print_line(&format!("{mark}{line}")));
    }

    /// Prints a line where [`Self::redraw`] shows nothing.
    pub(super) fn print_plain(&mut self, line: &str) {
        if !self.is_interactive {
            self.print_line(line);
        }
    }

    /// Shows a block in the place of the one before. Lines must be shorter than the terminal is wide.
    pub(super) fn redraw(&mut self, lines: &[String]) {
        if self.is_interactive {
            let text = format!("{}{}\n", self.erase(), lines.join("\n"));
            self.write(&text);
            self.drawn_lines = lines.len();
        }
    }

    /// Keeps the block on the screen; further output goes below it.
    pub(super) fn keep_block(&mut self) {
        self.drawn_lines = 0;
    }

    /// The control sequence that removes the block: cursor up, clear to the end (ECMA-48 CUU and ED).
    fn erase(&mut self) -> String {
        match std::mem::take(&mut self.drawn_lines) {
            0 => String::new(),
            lines => format!("\x1b[{lines}A\x1b[J"),
        }
    }

    fn write(&mut self, text: &str) {
        let _ = self.out.write_all(text.as_bytes());
        let _ = self.out.flush();
    }
}
