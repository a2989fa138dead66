//! The user that cloud-init in an image makes by itself, such as `debian` or `ubuntu`.

use crate::layout::Image;

impl Image<'_> {
    /// The name of that user, as the image's `/etc/cloud/cloud.cfg` says; `None` if there is no
    /// such file, or it does not say. It is the image's word, and not checked.
    #[must_use]
    pub fn default_user(&self) -> Option<String> {
        let (slot, path) = self.locate("/etc/cloud/cloud.cfg")?;
        default_user(&self.text(slot, &path)?)
    }
}

/// `name` in the block `default_user`, as images write it: a mapping by indentation.
fn default_user(text: &str) -> Option<String> {
    let indent = |line: &str| line.len() - line.trim_start_matches(' ').len();
    let says = |line: &&str| !line.trim().is_empty() && !line.trim_start().starts_with('#');
    let mut lines = text.lines().filter(says);
    let bare = |line: &str| line.split(" #").next().unwrap_or_default().trim().to_owned();
    let outer = lines.find(|line| bare(line) == "default_user:").map(indent)?;
    let mut inner = None;
    for line in lines.take_while(|line| indent(line) > outer) {
        let own = *inner.get_or_insert(indent(line)) == indent(line);
        if let (true, Some(value)) = (own, line.trim().strip_prefix("name:")) {
            let value = bare(value);
            let name = value.trim_matches(['"', '\'']);
            return (!name.is_empty()).then(|| name.to_owned());
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_user_is_named_in_its_own_block() {
        let debian = "users:\n   - default\nsystem_info:\n   # name: none\n   distro: debian\n   default_user: # of the image\n     \
                      # a comment\n     sudo:\n       - name: other\n     name: debian # the user\n     lock_passwd: True\n";
        assert_eq!(default_user(debian).as_deref(), Some("debian"));
        assert_eq!(default_user("default_user:\n  name: 'ubuntu'\n").as_deref(), Some("ubuntu"));
        for none in [
            "",
            "name: x\n",
            "default_user:\nname: x\n",
            "default_user:\n  gecos: x\nother:\n  name: x\n",
            "default_user:\n  name:\n",
            "default_user: {name: x}\n",
        ] {
            assert_eq!(default_user(none), None, "{none:?}");
        }
    }
}
