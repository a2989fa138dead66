//! The order of versions, as boot loaders have it (UAPI.10, which is rpm's with `~` and `^`, and
//! dpkg's for what kernels are called).

use std::cmp::Ordering;

fn valid(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '~' | '^')
}

/// Takes the longest run of characters for which `is` holds off the front.
fn take<'a>(text: &mut &'a str, is: impl Fn(char) -> bool) -> &'a str {
    let end = text.find(|c| !is(c)).unwrap_or(text.len());
    let (run, rest) = text.split_at(end);
    *text = rest;
    run
}

/// Compares two versions: `6.1.0-9` is before `6.1.0-10`, and `6.1~rc1` before `6.1`.
#[must_use]
pub fn compare(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (a, b);
    loop {
        take(&mut a, |c| !valid(c));
        take(&mut b, |c| !valid(c));
        // What begins with one of these is before what does not: in this order, the end between.
        for mark in ['~', '\0', '-', '^', '.'] {
            let has = |text: &str| if mark == '\0' { text.is_empty() } else { text.starts_with(mark) };
            match (has(a), has(b)) {
                (true, true) if mark == '\0' => return Ordering::Equal,
                (true, true) => {
                    a = &a[1..];
                    b = &b[1..];
                    break;
                }
                (true, false) => return Ordering::Less,
                (false, true) => return Ordering::Greater,
                (false, false) => {}
            }
        }
        let digits = |c: char| c.is_ascii_digit();
        let order = if a.starts_with(digits) || b.starts_with(digits) {
            let (left, right) = (take(&mut a, digits), take(&mut b, digits));
            let (left, right) = (left.trim_start_matches('0'), right.trim_start_matches('0'));
            left.len().cmp(&right.len()).then_with(|| left.cmp(right))
        } else {
            let letters = |c: char| c.is_ascii_alphabetic();
            take(&mut a, letters).cmp(take(&mut b, letters))
        };
        if order != Ordering::Equal {
            return order;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each is before the next; orders that rpm and dpkg have, too.
    #[test]
    fn versions_have_the_order_of_packages() {
        let tables: [&[&str]; 4] = [
            &["6.1.0-9-amd64", "6.1.0-10-amd64", "6.1.0-32-amd64", "6.12.5-amd64"],
            &[
                "5.14.0-70.el9",
                "5.14.0-427.13.1.el9_4",
                "5.14.0-427.20.1.el9_4",
                "6.8.5-301.fc40",
                "6.10.0-1.fc41",
            ],
            &[
                "122.1",
                "123~rc1-1",
                "123",
                "123-a",
                "123-a.1",
                "123-1",
                "123-1.1",
                "123^post1",
                "123.a-1",
                "123.1-1",
                "123a-1",
                "124-1",
            ],
            &["", "linux", "lts", "virt"],
        ];
        for table in tables {
            for (at, older) in table.iter().enumerate() {
                assert_eq!(compare(older, older), Ordering::Equal);
                for newer in &table[at + 1..] {
                    assert_eq!(compare(older, newer), Ordering::Less, "{older} {newer}");
                    assert_eq!(compare(newer, older), Ordering::Greater, "{older} {newer}");
                }
            }
        }
        assert_eq!(compare("6.01", "6.1"), Ordering::Equal);
        assert_eq!(compare("99999999999999999999999", "100000000000000000000000"), Ordering::Less);
    }
}
