//! Requests to the guest agent: its services message by message, and bytes on a connection.

use std::fs;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, header};
use http_body_util::{BodyExt as _, Full};
use pinfold_agent::fuzzing::Served;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::runtime::Builder;

use crate::input::Input;
use crate::place::Place;

/// Most requests of one input, which all go to the same agent.
const REQUESTS_MAX: usize = 6;

/// Most bytes of one answer that are read.
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// Longest time for one request; all of them are about a few small files.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(20);

/// Bytes that may be under way on a connection.
const PIPE_BYTES: usize = 256 << 10;

/// Every method, and whether its requests and answers are streams.
const METHODS: [(&str, bool); 20] = [
    ("ProcessService/Start", false),
    ("ProcessService/Read", true),
    ("ProcessService/Acknowledge", false),
    ("ProcessService/Input", false),
    ("ProcessService/Resize", false),
    ("ProcessService/Signal", false),
    ("ProcessService/List", false),
    ("ProcessService/Forget", false),
    ("FileService/Stat", false),
    ("FileService/ListDirectory", false),
    ("FileService/ReadFile", true),
    ("FileService/WriteFile", true),
    ("FileService/MakeDirectory", false),
    ("FileService/Rename", false),
    ("FileService/Remove", false),
    ("FileService/Watch", true),
    ("FileService/Pack", true),
    ("FileService/Unpack", true),
    ("SystemService/Ready", false),
    ("SystemService/Metrics", false),
];

/// Its answer does not end by itself.
const ENDLESS: &str = "FileService/Watch";

/// Every request is answered or its connection ended, and nothing outside the root is touched.
pub fn run(data: &[u8]) {
    let place = Place::new();
    let inside = place.inside();
    fs::create_dir_all(inside.join("etc")).expect("it is writable");
    fs::write(inside.join("etc/passwd"), "u:x:7:8::/:/bin/sh\n").expect("it is writable");
    std::os::unix::fs::symlink(place.secret(), inside.join("out")).expect("it is writable");
    let runtime = Builder::new_current_thread().enable_all().build();
    let runtime = runtime.expect("a runtime can be made");
    runtime.block_on(async {
        let served = Served::beneath(&inside).expect("the directory is there");
        let mut input = Input::new(data);
        for _ in 0..REQUESTS_MAX {
            if input.is_empty() {
                break;
            }
            let answered = tokio::time::timeout(ANSWER_TIME_MAX, request(&served, &mut input));
            assert!(answered.await.is_ok(), "it was not answered");
        }
        let idle = tokio::time::timeout(ANSWER_TIME_MAX, served.idle()).await;
        assert!(idle.is_ok(), "it goes on for nobody");
    });
    drop(runtime);
    place.check();
}

async fn request(served: &Served, input: &mut Input<'_>) {
    let choice = input.byte();
    if choice & 128 == 0 {
        call(served, choice, input).await;
    } else {
        connection(served, input.part()).await;
    }
}

/// Calls a method; a stream's messages are framed, unless the input brings its own frames.
async fn call(served: &Served, choice: u8, input: &mut Input<'_>) {
    let Some((method, stream)) = METHODS.get(usize::from(choice) % METHODS.len()) else {
        return;
    };
    let form = input.byte();
    let mut body = Vec::new();
    if *stream && form & 1 == 0 {
        for _ in 0..=(form >> 4 & 3) {
            let message = input.part();
            body.push(0);
            body.extend_from_slice(&u32::try_from(message.len()).unwrap_or(0).to_be_bytes());
            body.extend_from_slice(message);
        }
    } else {
        body.extend_from_slice(input.part());
    }
    let kind = match (*stream, form & 2 == 0) {
        (false, true) => "application/proto",
        (false, false) => "application/json",
        (true, true) => "application/connect+proto",
        (true, false) => "application/connect+json",
    };
    let mut request = Request::post(format!("/pinfold.agent.v1.{method}"))
        .header(header::CONTENT_TYPE, kind)
        .header("connect-protocol-version", "1");
    if form & 4 != 0 {
        request = request.header("connect-content-encoding", "gzip");
    }
    let request = request.body(Full::new(Bytes::from(body)));
    let answer = served.call(request.expect("its parts are fixed")).await;
    let status = answer.status().as_u16();
    assert!((200..600).contains(&status), "{status}");
    if *method == ENDLESS {
        return;
    }
    let mut body = answer.into_body();
    let mut length = 0;
    while let Some(Ok(frame)) = body.frame().await {
        length += frame.data_ref().map_or(0, Bytes::len);
        if length > ANSWER_BYTES_MAX {
            break;
        }
    }
}

/// Sends bytes and closes; the agent must then be done with the connection.
async fn connection(served: &Served, bytes: &[u8]) {
    let (mut ours, theirs) = tokio::io::duplex(PIPE_BYTES);
    let serving = tokio::spawn({
        let served = served.clone();
        async move { served.connection(theirs).await }
    });
    // The agent may close before it has read all.
    if ours.write_all(bytes).await.is_ok() {
        drop(ours.shutdown().await);
    }
    let mut answer = Vec::new();
    let most = u64::try_from(ANSWER_BYTES_MAX).unwrap_or(u64::MAX);
    drop(ours.take(most).read_to_end(&mut answer).await);
    assert!(serving.await.is_ok(), "the connection's task died");
}
