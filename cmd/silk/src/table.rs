//! Columns that line up. Pure.

/// Rows of cells, the first one a heading; empty trailing cells leave no blanks behind.
pub fn align(rows: &[Vec<String>], indent: &str) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |i: usize| rows.iter().filter_map(|row| row.get(i)).map(|cell| cell.chars().count()).max().unwrap_or(0);
    let widths: Vec<_> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = indent.to_owned();
        // A column without a single value, and so without more than its heading, is still worth its place: it says so.
        for (cell, width) in row.iter().zip(&widths) {
            line.push_str(cell);
            line.extend(std::iter::repeat_n(' ', width - cell.chars().count() + 2));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let row = |cells: &[&str]| cells.iter().map(|c| (*c).to_owned()).collect::<Vec<_>>();
        let rows = [row(&["A", "LONG", "C"]), row(&["äöü", "", "x"]), row(&["1", "2", ""])];
        assert_eq!(align(&rows, " "), " A    LONG  C\n äöü        x\n 1    2\n");
        assert_eq!(align(&[], " "), "");
    }
}
