//! Downloads that go on where they stopped.

use std::fs::{self, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ureq::Agent;
use ureq::http::{Response, StatusCode};

use crate::DataError;
use crate::fetch::{self, Progress};
use crate::sources::DataFile;

/// Gets one gzipped file from the first mirror that gives the right bytes.
pub(crate) fn file(
    mirrors: &[&str],
    file: &DataFile,
    folder: &Path,
    progress: &mut dyn Progress,
) -> Result<(), DataError> {
    from_any(
        mirrors,
        &format!("{}.gz", file.name),
        folder,
        progress,
        |path, progress| {
            let reader = fetch::open(path).map_err(|error| fetch::failed(path, error))?;
            fetch::store(reader, file, path, folder, progress)
        },
    )
}

/// Gets an archive from the first mirror that gives the right files.
pub(crate) fn archive(
    mirrors: &[&str],
    name: &str,
    files: &[&DataFile],
    folder: &Path,
    progress: &mut dyn Progress,
) -> Result<(), DataError> {
    from_any(mirrors, name, folder, progress, |path, progress| {
        fetch::from_archive(path, files, folder, progress)
    })
}

/// Downloads `name` from one mirror after another until `accept` takes what came; the error tells of all of them.
fn from_any(
    mirrors: &[&str],
    name: &str,
    folder: &Path,
    progress: &mut dyn Progress,
    mut accept: impl FnMut(&Path, &mut dyn Progress) -> Result<(), DataError>,
) -> Result<(), DataError> {
    let mut problems = Vec::new();
    for mirror in mirrors {
        let url = format!("{mirror}{name}");
        // `.part` goes first so that the last extension still says how the file is compressed.
        let part = folder.join(format!("part-{name}"));
        let problem = match get(&url, &part, progress) {
            Ok(()) => match accept(&part, progress) {
                Ok(()) => {
                    let _ = fs::remove_file(&part);
                    return Ok(());
                }
                Err(error) => {
                    // Whole, but wrong: going on from it would not help.
                    let _ = fs::remove_file(&part);
                    error.to_string()
                }
            },
            Err(problem) => problem,
        };
        problems.push(format!("{url}: {problem}"));
    }
    let hint =
        "hint: a download that broke off goes on where it stopped; `--from DIR` takes local files";
    let problem = format!(
        "cannot be downloaded\n  {}\n\n{hint}",
        problems.join("\n  ")
    );
    Err(DataError::File {
        path: folder.join(name),
        problem,
    })
}

/// Downloads `url` to `part`, from where an earlier attempt stopped.
fn get(url: &str, part: &PathBuf, progress: &mut dyn Progress) -> Result<(), String> {
    let config = Agent::config_builder()
        .timeout_connect(Some(Duration::from_secs(20)))
        .timeout_recv_response(Some(Duration::from_secs(60)))
        .http_status_as_error(false)
        .user_agent(concat!("gauntlet/", env!("CARGO_PKG_VERSION")))
        .build();
    let agent = Agent::new_with_config(config);
    let have = fs::metadata(part).map_or(0, |meta| meta.len());
    let mut request = agent.get(url);
    if have > 0 {
        request = request.header("Range", format!("bytes={have}-"));
    }
    let response = request.call().map_err(|error| error.to_string())?;
    let (append, start) = match response.status() {
        StatusCode::OK => (false, 0),
        StatusCode::PARTIAL_CONTENT => (true, have),
        // Nothing is left to send: what is here is all there is.
        StatusCode::RANGE_NOT_SATISFIABLE if have > 0 => return Ok(()),
        status => return Err(format!("the server answers {status}")),
    };
    let length = announced(&response);
    let name = part
        .file_name()
        .map(|name| name.to_string_lossy().replacen("part-", "", 1))
        .unwrap_or_default();
    progress.start(&name, length.map(|length| start + length));
    progress.advance(start);
    let mut target = OpenOptions::new()
        .create(true)
        .write(true)
        .append(append)
        .truncate(!append)
        .open(part)
        .map_err(|error| error.to_string())?;
    let mut body = response.into_body();
    let received =
        copy(&mut body.as_reader(), &mut target, progress).map_err(|error| error.to_string())?;
    if length.is_some_and(|length| received != length) {
        return Err(format!("broke off after {} bytes", start + received));
    }
    progress.finish();
    Ok(())
}

fn announced<T>(response: &Response<T>) -> Option<u64> {
    response
        .headers()
        .get("content-length")?
        .to_str()
        .ok()?
        .parse()
        .ok()
}

fn copy(from: &mut impl Read, to: &mut impl Write, progress: &mut dyn Progress) -> io::Result<u64> {
    let mut buffer = vec![0; 1 << 16];
    let mut total = 0;
    loop {
        let read = from.read(&mut buffer)?;
        if read == 0 {
            return Ok(total);
        }
        to.write_all(&buffer[..read])?;
        total += read as u64;
        progress.advance(read as u64);
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::net::TcpListener;
    use std::sync::{Arc, Mutex};
    use std::thread;

    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;
    use crate::fetch::Silent;

    /// SHA-256 of `abc`, from FIPS 180-4.
    const ABC: DataFile = DataFile {
        name: "abc",
        sha256: "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
    };

    /// How the server treats a request.
    #[derive(Clone, Copy, PartialEq)]
    enum Manner {
        /// Honours ranges.
        Ranges,
        /// Sends everything, whatever the range.
        Whole,
        /// Announces everything and hangs up after so many bytes.
        BreaksOff(usize),
        Missing,
    }

    /// Serves `body` to one request after another, each in its manner; returns its address and the ranges it was asked for.
    fn serve(body: Vec<u8>, manners: Vec<Manner>) -> (String, Arc<Mutex<Vec<String>>>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}/", listener.local_addr().unwrap());
        let asked = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&asked);
        thread::spawn(move || {
            for manner in manners {
                let (mut stream, _) = listener.accept().unwrap();
                let lines = BufReader::new(stream.try_clone().unwrap())
                    .lines()
                    .map_while(Result::ok);
                let head: Vec<_> = lines.take_while(|line| !line.is_empty()).collect();
                let range = head.iter().find_map(|line| {
                    line.to_lowercase()
                        .strip_prefix("range: ")
                        .map(str::to_owned)
                });
                log.lock().unwrap().push(range.clone().unwrap_or_default());
                let from = range.and_then(|r| {
                    r.strip_prefix("bytes=")?
                        .strip_suffix('-')?
                        .parse::<usize>()
                        .ok()
                });
                let (status, from) = match (manner, from) {
                    (Manner::Missing, _) => ("404 Not Found", body.len()),
                    (Manner::Ranges, Some(from)) if from >= body.len() => {
                        ("416 Range Not Satisfiable", body.len())
                    }
                    (Manner::Ranges, Some(from)) => ("206 Partial Content", from),
                    _ => ("200 OK", 0),
                };
                let rest = &body[from..];
                let sent = if let Manner::BreaksOff(after) = manner {
                    &rest[..after]
                } else {
                    rest
                };
                let header = format!(
                    "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                    rest.len()
                );
                let _ = stream
                    .write_all(header.as_bytes())
                    .and_then(|()| stream.write_all(sent));
            }
        });
        (address, asked)
    }

    fn gz(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn names(folder: &Path) -> Vec<String> {
        fs::read_dir(folder)
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect()
    }

    #[test]
    fn a_download_that_broke_off_goes_on_where_it_stopped() {
        let folder = tempfile::tempdir().unwrap();
        for next in [Manner::Ranges, Manner::Whole] {
            let (address, asked) = serve(gz(b"abc"), vec![Manner::BreaksOff(9), next]);
            let error = file(&[&address], &ABC, folder.path(), &mut Silent)
                .unwrap_err()
                .to_string();
            assert!(
                error.contains("abc.gz") && error.contains(&address),
                "{error}"
            );
            assert_eq!(names(folder.path()), ["part-abc.gz"]);
            file(&[&address], &ABC, folder.path(), &mut Silent).unwrap();
            assert_eq!(*asked.lock().unwrap(), ["", "bytes=9-"]);
            assert_eq!(names(folder.path()), ["abc"]);
            assert_eq!(fs::read(folder.path().join("abc")).unwrap(), b"abc");
            fs::remove_file(folder.path().join("abc")).unwrap();
        }
    }

    #[test]
    fn a_part_that_is_whole_is_not_asked_for_again() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("part-abc.gz"), gz(b"abc")).unwrap();
        let (address, _) = serve(gz(b"abc"), vec![Manner::Ranges]);
        file(&[&address], &ABC, folder.path(), &mut Silent).unwrap();
        assert_eq!(names(folder.path()), ["abc"]);
    }

    #[test]
    fn the_next_mirror_is_tried_and_wrong_content_is_thrown_away() {
        let folder = tempfile::tempdir().unwrap();
        let (missing, _) = serve(Vec::new(), vec![Manner::Missing]);
        let (altered, _) = serve(gz(b"abd"), vec![Manner::Ranges; 2]);
        let (good, _) = serve(gz(b"abc"), vec![Manner::Ranges]);
        let error = file(&[&altered], &ABC, folder.path(), &mut Silent)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains(ABC.sha256) && error.contains("a52d159f"),
            "{error}"
        );
        assert!(names(folder.path()).is_empty());
        file(
            &[&missing, &altered, &good],
            &ABC,
            folder.path(),
            &mut Silent,
        )
        .unwrap();
        assert_eq!(names(folder.path()), ["abc"]);
    }
}
