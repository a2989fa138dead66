//! Tables on standard output.

/// Widest column, in characters. A guest may say a word of any length, which moves the rest of its
/// own line to the right, and no other line.
const WIDEST: usize = 256;

/// Rows as lines with columns of the same width.
pub(crate) fn aligned<const N: usize>(rows: &[[String; N]]) -> Vec<String> {
    let length = |cell: &str| cell.chars().count();
    let width = |column: usize| {
        let lengths = rows.iter().map(|row| length(&row[column]));
        lengths.filter(|length| *length <= WIDEST).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..N).map(width).collect();
    let line = |row: &[String; N]| {
        let mut line = String::new();
        for (index, (cell, width)) in row.iter().zip(&widths).enumerate() {
            line.push_str(cell);
            if index + 1 < N {
                let blanks = width.saturating_sub(length(cell)) + 3;
                line.extend(std::iter::repeat_n(' ', blanks));
            }
        }
        line.truncate(line.trim_end().len());
        line
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let rows = [["a", "bbb"], ["cc", "d"]].map(|row| row.map(str::to_owned));
        assert_eq!(aligned(&rows), ["a    bbb", "cc   d"]);
    }

    #[test]
    fn a_cell_of_any_width_moves_its_own_line_alone() {
        let wide = "w".repeat(70_000);
        let rows = [["a", "b", "c"], [&wide, "b", &wide], ["aa", "", ""]].map(|row| row.map(str::to_owned));
        let lines = aligned(&rows);
        assert_eq!((lines[0].as_str(), lines[2].as_str()), ("a    b   c", "aa"));
        assert_eq!(lines[1], format!("{wide}   b   {wide}"));
    }
}
