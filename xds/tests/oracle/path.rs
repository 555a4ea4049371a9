//! What servers may make of a request's path, one server at a time.
//!
//! An entry of `allow` holds where every server would serve what it names, an entry of `deny` where
//! any server might. What no two servers agree about (dot segments, slashes in disguise, escapes of
//! escapes, control characters) is allowed by no `paths` and denied by all.

/// How a server reads a path.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Server {
    /// It takes `%3A` for `:`.
    unescapes: bool,
    /// It takes `/a;x=1` for `/a`.
    drops_parameters: bool,
    /// It takes `//` for `/`.
    merges_slashes: bool,
}

/// Whether an entry's `/v1/orders` or `/v1/*` surely names what is asked for.
pub(crate) fn surely(pattern: &str, asked: &str) -> bool {
    !is_doubtful(asked) && servers().all(|server| names(&server, pattern, asked))
}

/// Whether it might. Slashes at the end do not count.
pub(crate) fn perhaps(pattern: &str, asked: &str) -> bool {
    is_doubtful(asked) || servers().any(|server| names_but_for_the_end(&server, pattern, asked))
}

/// What rules make of it: one answer, if they make the same of it behind every server.
pub(crate) fn agreed(of: &dyn Fn(&Reading<'_>) -> Option<usize>, asked: &str) -> Option<usize> {
    let mut answers = servers().map(|server| {
        of(&Reading {
            asked: server.segments(asked),
            server: &server,
        })
    });
    let first = answers.next().flatten();
    let is_one = !is_doubtful(asked) && answers.all(|answer| answer == first);
    if is_one { first } else { None }
}

/// A path as one server reads it.
pub(crate) struct Reading<'a> {
    asked: Vec<Vec<u8>>,
    server: &'a Server,
}

impl Reading<'_> {
    pub(crate) fn is(&self, path: &str) -> bool {
        self.asked == self.server.segments(path)
    }

    pub(crate) fn is_at_or_below(&self, path: &str) -> bool {
        self.asked.starts_with(&self.server.segments(path))
    }
}

fn servers() -> impl Iterator<Item = Server> {
    (0..8).map(|nth| Server {
        unescapes: nth & 1 == 1,
        drops_parameters: nth & 2 == 2,
        merges_slashes: nth & 4 == 4,
    })
}

/// What servers cannot be trusted to agree about.
fn is_doubtful(asked: &str) -> bool {
    let path = without_query(asked);
    if path.is_empty() || path == "*" {
        return false;
    }
    let Some(named) = unescaped(path.as_bytes()) else {
        return true;
    };
    let is_odd = |byte: u8| byte == b'\\' || byte < b' ' || byte == 0x7f;
    let has_dots = path.split('/').any(|segment| {
        let name = segment.split(';').next().unwrap_or_default();
        matches!(unescaped(name.as_bytes()).as_deref(), Some(b"." | b".."))
    });
    !path.starts_with('/')
        || path.contains([' ', '#'])
        || path.to_ascii_lowercase().contains("%2f")
        || named.iter().any(|byte| is_odd(*byte))
        || has_dots
        // An escape again, once it is undone.
        || (0..named.len()).any(|at| {
            named[at] == b'%' && named[at + 1..].iter().take(2).filter(|b| b.is_ascii_hexdigit()).count() == 2
        })
}

fn names(server: &Server, pattern: &str, asked: &str) -> bool {
    let asked = server.segments(asked);
    if asked == [[0]] {
        return false;
    }
    match pattern.strip_suffix("/*") {
        Some(above) => {
            let above = server.segments(above);
            let above = if pattern == "/*" { &[][..] } else { &above };
            asked.len() > above.len() && asked.starts_with(above)
        }
        None => asked == server.segments(pattern),
    }
}

fn names_but_for_the_end(server: &Server, pattern: &str, asked: &str) -> bool {
    let trimmed = |path: &str| {
        let mut segments = server.segments(path);
        while segments.last().is_some_and(Vec::is_empty) {
            segments.pop();
        }
        segments
    };
    let path = trimmed(asked);
    if path == [[0]] {
        return false;
    }
    match pattern.strip_suffix("/*") {
        Some(above) => path.starts_with(&trimmed(above)),
        None => path == trimmed(pattern),
    }
}

impl Server {
    /// The names between the slashes.
    fn segments(&self, asked: &str) -> Vec<Vec<u8>> {
        let path = without_query(asked);
        if path == "*" {
            // The asterisk-form is no path; a name that none has stands for it.
            return vec![vec![0]];
        }
        let path = path.strip_prefix('/').unwrap_or(path);
        let mut segments: Vec<Vec<u8>> = path.split('/').map(|name| self.name(name)).collect();
        if self.merges_slashes {
            let last = segments.len() - 1;
            let mut nth = 0;
            segments.retain(|name| {
                nth += 1;
                // The last one is empty where the path ends with a slash.
                !name.is_empty() || nth - 1 == last
            });
        }
        segments
    }

    fn name(&self, segment: &str) -> Vec<u8> {
        let name = match segment.split_once(';') {
            Some((name, _)) if self.drops_parameters => name,
            Some(_) | None => segment,
        };
        if self.unescapes {
            return unescaped(name.as_bytes()).unwrap_or_else(|| name.into());
        }
        // RFC 3986 §6.2.2: what no server tells apart.
        let mut out = Vec::new();
        let bytes = name.as_bytes();
        let mut at = 0;
        while at < bytes.len() {
            let escaped = bytes
                .get(at..at + 3)
                .and_then(unescaped)
                .filter(|_| bytes[at] == b'%');
            let (byte, is_escape) = match escaped.as_deref() {
                Some([byte]) => (*byte, true),
                Some(_) | None => (bytes[at], false),
            };
            at += if is_escape { 3 } else { 1 };
            let is_unreserved = byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
            if (is_escape && !is_unreserved) || !byte.is_ascii() {
                out.extend(format!("%{byte:02X}").into_bytes());
            } else {
                out.push(byte);
            }
        }
        out
    }
}

fn without_query(asked: &str) -> &str {
    asked.split('?').next().unwrap_or_default()
}

/// Every escape undone; `None` where one is none.
fn unescaped(text: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    let mut rest = text.iter();
    while let Some(byte) = rest.next() {
        if *byte == b'%' {
            let digit = |byte: Option<&u8>| char::from(*byte?).to_digit(16);
            let (high, low) = (digit(rest.next())?, digit(rest.next())?);
            out.push(u8::try_from(high * 16 + low).unwrap());
        } else {
            out.push(*byte);
        }
    }
    Some(out)
}
