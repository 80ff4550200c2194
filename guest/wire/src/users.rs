//! `user[:group]` looked up in the image's own `passwd` and `group`, with Docker's rules. Pure: the caller reads the files, inside the
//! image's root and nowhere else.

/// Longest `passwd` or `group` that is read, in bytes. A longer one is an error, never cut.
pub const MAX_ACCOUNTS_FILE: usize = 4 << 20;

/// Most supplementary groups that the kernel takes (`NGROUPS_MAX`).
const MAX_GROUPS: usize = 65536;

/// Largest number that Docker takes for a user or group.
const MAX_ID: u32 = i32::MAX as u32;

/// Content of `/etc/passwd` and `/etc/group`; empty where the image has none.
#[derive(Clone, Copy, Debug, Default)]
pub struct Accounts<'a> {
    /// `/etc/passwd`.
    pub passwd: &'a [u8],
    /// `/etc/group`.
    pub group: &'a [u8],
}

/// Who a process is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// User number.
    pub uid: u32,
    /// Group number.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Home folder; `/` for a number that `passwd` does not know.
    pub home: String,
}

impl Default for Identity {
    fn default() -> Self {
        Self { uid: 0, gid: 0, groups: Vec::new(), home: "/".to_owned() }
    }
}

/// Why a user or group cannot be found.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum UserError {
    /// The name is not in `/etc/passwd`.
    #[error("Unable to find user {0}: no matching entries in the image's /etc/passwd")]
    NoUser(String),
    /// The name is not in `/etc/group`.
    #[error("Unable to find group {0}: no matching entries in the image's /etc/group")]
    NoGroup(String),
    /// The number is not between 0 and 2147483647.
    #[error("User or group number {0} is not between 0 and {MAX_ID}")]
    Range(String),
    /// `passwd` or `group` is too long to read.
    #[error("The image's {file} has {length} bytes, at most {MAX_ACCOUNTS_FILE} are read")]
    TooLong {
        /// Which.
        file: &'static str,
        /// Its length in bytes.
        length: usize,
    },
}

/// A line of `passwd` (passwd(5)): `name:password:uid:gid:comment:home:shell`.
struct User<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

/// A line of `group` (group(5)): `name:password:gid:member,member`.
struct Group<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

impl Identity {
    /// Resolves `spec`, which is `user`, `user:group`, `:group` or empty for root, each part a name or a number. The first line of a file
    /// that matches by name or by number counts. A number needs no line. With no group given the user's own group counts, and all groups
    /// that name the user as a member are supplementary.
    pub fn resolve(spec: &str, accounts: Accounts<'_>) -> Result<Self, UserError> {
        for (file, bytes) in [("/etc/passwd", accounts.passwd), ("/etc/group", accounts.group)] {
            if bytes.len() > MAX_ACCOUNTS_FILE {
                return Err(UserError::TooLong { file, length: bytes.len() });
            }
        }
        let mut parts = spec.split(':');
        let (user, group) = (parts.next().unwrap_or(""), parts.next().unwrap_or(""));
        let mut identity = Self::default();
        let matched = identity.take_user(user, accounts)?;
        if !group.is_empty() {
            identity.gid = find_group(group, accounts)?;
        } else if let Some(name) = matched {
            let member = groups(accounts.group).filter(|g| g.members.split(',').any(|m| m == name));
            identity.groups = member.map(|g| g.gid).take(MAX_GROUPS).collect();
        }
        Ok(identity)
    }

    /// Sets uid, gid and home; returns the user's name if `passwd` knows it.
    fn take_user<'a>(&mut self, user: &str, accounts: Accounts<'a>) -> Result<Option<&'a str>, UserError> {
        let number = if user.is_empty() { Some(Number::Id(0)) } else { Number::parse(user) };
        let matches = |u: &User<'_>| (!user.is_empty() && u.name == user) || number == Some(Number::Id(u.uid));
        if let Some(found) = users(accounts.passwd).find(matches) {
            (self.uid, self.gid) = (found.uid, found.gid);
            if !found.home.is_empty() {
                found.home.clone_into(&mut self.home);
            }
            return Ok(Some(found.name));
        }
        self.uid = match number {
            Some(Number::Id(uid)) => uid,
            Some(Number::OutOfRange) => return Err(UserError::Range(user.to_owned())),
            None => return Err(UserError::NoUser(user.to_owned())),
        };
        Ok(None)
    }
}

fn find_group(group: &str, accounts: Accounts<'_>) -> Result<u32, UserError> {
    let number = Number::parse(group);
    let matches = |g: &Group<'_>| g.name == group || number == Some(Number::Id(g.gid));
    if let Some(found) = groups(accounts.group).find(matches) {
        return Ok(found.gid);
    }
    match number {
        Some(Number::Id(gid)) => Ok(gid),
        Some(Number::OutOfRange) => Err(UserError::Range(group.to_owned())),
        None => Err(UserError::NoGroup(group.to_owned())),
    }
}

/// A text that reads as a number.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Number {
    Id(u32),
    OutOfRange,
}

impl Number {
    fn parse(text: &str) -> Option<Self> {
        let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
        if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        let value = text.strip_prefix('+').unwrap_or(text).parse::<u32>().ok().filter(|n| *n <= MAX_ID);
        Some(value.map_or(Self::OutOfRange, Self::Id))
    }
}

/// Lines of an accounts file; what is not UTF-8 or has too few fields is passed over, as Docker does.
fn lines(bytes: &[u8]) -> impl Iterator<Item = &str> {
    bytes.split(|b| *b == b'\n').filter_map(|l| std::str::from_utf8(l).ok()).map(str::trim).filter(|l| !l.is_empty())
}

fn users(bytes: &[u8]) -> impl Iterator<Item = User<'_>> {
    lines(bytes).filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let uid = fields.nth(1)?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        Some(User { name, uid, gid, home: fields.nth(1).unwrap_or("") })
    })
}

fn groups(bytes: &[u8]) -> impl Iterator<Item = Group<'_>> {
    lines(bytes).filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let gid = fields.nth(1)?.parse().ok()?;
        Some(Group { name, gid, members: fields.next().unwrap_or("") })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ACCOUNTS: Accounts<'static> = Accounts {
        passwd: b"root:x:0:0:root:/root:/bin/sh\n\nbroken\nbad:x:one:1::/:\nann:x:1000:1001:Ann:/home/ann:/bin/sh\n\
                  2000:x:7:7::/odd:\nbob:x:2000:2000::/home/bob:\nnohome:x:3000:3000\nann:x:9:9::/second:\n",
        group:
            b"root:x:0:\nstaff:x:50:bob,ann\nann:x:1001:\nvideo:x:44:ann\nannex:x:60:annex\nshort:x:70\n\xff:x:1:ann\n",
    };

    fn resolved(spec: &str) -> Result<(u32, u32, Vec<u32>, String), UserError> {
        Identity::resolve(spec, ACCOUNTS).map(|i| (i.uid, i.gid, i.groups, i.home))
    }

    #[test]
    fn names_and_numbers_resolve_as_docker_does() {
        let cases: &[(&str, u32, u32, &[u32], &str)] = &[
            ("", 0, 0, &[], "/root"),
            ("root", 0, 0, &[], "/root"),
            ("0", 0, 0, &[], "/root"),
            ("ann", 1000, 1001, &[50, 44], "/home/ann"),
            ("1000", 1000, 1001, &[50, 44], "/home/ann"),
            ("ann:", 1000, 1001, &[50, 44], "/home/ann"),
            ("ann:video", 1000, 44, &[], "/home/ann"),
            ("ann:44", 1000, 44, &[], "/home/ann"),
            ("ann:4444", 1000, 4444, &[], "/home/ann"),
            (":staff", 0, 50, &[], "/root"),
            ("4242", 4242, 0, &[], "/"),
            ("4242:70", 4242, 70, &[], "/"),
            ("2000", 7, 7, &[], "/odd"),
            ("nohome", 3000, 3000, &[], "/"),
        ];
        for (spec, uid, gid, groups, home) in cases {
            assert_eq!(resolved(spec), Ok((*uid, *gid, groups.to_vec(), (*home).to_owned())), "{spec}");
        }
    }

    #[test]
    fn what_is_unknown_or_out_of_range_is_an_error() {
        assert_eq!(resolved("eve"), Err(UserError::NoUser("eve".into())));
        assert_eq!(resolved("ann:eve"), Err(UserError::NoGroup("eve".into())));
        for number in ["-1", "2147483648", "99999999999999999999"] {
            assert_eq!(resolved(number), Err(UserError::Range(number.into())));
            assert_eq!(resolved(&format!("0:{number}")), Err(UserError::Range(number.into())));
        }
        assert_eq!(resolved("bad"), Err(UserError::NoUser("bad".into())), "a broken line is no user");
    }

    #[test]
    fn an_image_without_accounts_still_runs_numbers() {
        let none = Accounts::default();
        assert_eq!(Identity::resolve("", none), Ok(Identity::default()));
        assert_eq!(Identity::resolve("5:6", none).map(|i| (i.uid, i.gid)), Ok((5, 6)));
        assert_eq!(Identity::resolve("ann", none), Err(UserError::NoUser("ann".into())));
    }

    #[test]
    fn files_have_a_limit() {
        let long = vec![b'\n'; MAX_ACCOUNTS_FILE + 1];
        let accounts = Accounts { passwd: b"", group: &long };
        assert!(matches!(Identity::resolve("", accounts), Err(UserError::TooLong { file: "/etc/group", .. })));
    }

    proptest::proptest! {
        #[test]
        fn no_file_and_no_spec_panics(passwd: Vec<u8>, group: Vec<u8>, spec: String) {
            let _ = Identity::resolve(&spec, Accounts { passwd: &passwd, group: &group });
        }
    }
}
