//! The terminal: a screen of its own while frames are drawn, and what was there before afterwards.

use std::io;

use console::Term;

/// A second screen without history, and no cursor (xterm's private modes 1049 and 25; every terminal of the last decades).
const OPEN: &str = "\x1b[?1049h\x1b[?25l";
/// Back.
const CLOSE: &str = "\x1b[?25h\x1b[?1049l";

/// The terminal behind stdout. Put back when it is dropped.
#[derive(Debug)]
pub struct Screen(Term);

impl Screen {
    /// None if stdout is no terminal, or one that cannot draw.
    pub fn open() -> io::Result<Option<Self>> {
        let term = Term::stdout();
        if !term.is_term() || std::env::var_os("TERM").is_none_or(|kind| kind == "dumb") {
            return Ok(None);
        }
        let screen = Self(term);
        screen.0.write_str(OPEN)?;
        Ok(Some(screen))
    }

    /// Lines and columns.
    pub fn size(&self) -> (usize, usize) {
        let (lines, columns) = self.0.size();
        (lines.into(), columns.into())
    }

    /// Draws a frame, below a note if there is one.
    pub fn draw(&self, frame: &str, note: &str) -> io::Result<()> {
        self.0.write_str(&drawn(frame, note, self.size()))
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // A terminal that is gone needs no care.
        let _ = self.0.write_str(CLOSE);
    }
}

/// What draws a frame over the one before: no more lines than fit, none longer than fits. All at once, so that it does not flicker.
pub(super) fn drawn(frame: &str, note: &str, (lines, columns): (usize, usize)) -> String {
    let all: Vec<&str> = note.lines().chain(frame.lines()).collect();
    let shown = if all.len() > lines { lines.saturating_sub(1) } else { all.len() };
    let mut rows: Vec<String> =
        all[..shown].iter().map(|line| console::truncate_str(line, columns, "…").into()).collect();
    if shown < all.len() && lines > 0 {
        let more = format!("… and {} more lines", all.len() - shown);
        rows.push(console::truncate_str(&more, columns, "…").into());
    }
    // From the top; each line's rest is cleared, and what is below the last.
    format!("\x1b[H{}\x1b[K\x1b[J", rows.join("\x1b[K\r\n"))
}
