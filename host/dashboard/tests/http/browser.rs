//! A browser without a window, spoken to over the pipes of its DevTools protocol.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use base64::Engine;
use serde_json::{Value, json};

use crate::support::Dashboard;

/// What a page is looked at on.
#[derive(Clone, Copy, Debug)]
pub struct Screen {
    width: u32,
    height: u32,
    dark: bool,
    /// Touched, and sharper than it is wide.
    pub phone: bool,
}

impl Screen {
    /// A desk's.
    pub const LIGHT: Self = Self { width: 1280, height: 900, dark: false, phone: false };
    /// The same at night.
    pub const DARK: Self = Self { height: 750, dark: true, ..Self::LIGHT };
    /// A telephone's.
    pub const PHONE: Self = Self { width: 390, height: 844, dark: false, phone: true };
}

/// Ends with the test.
pub struct Browser {
    process: Child,
    commands: ChildStdin,
    answers: BufReader<ChildStdout>,
    number: u64,
    session: Option<String>,
    _home: tempfile::TempDir,
}

impl Browser {
    /// Starts it, with an empty page.
    pub fn start() -> Self {
        let home = tempfile::tempdir().unwrap();
        // The protocol's pipes are descriptors 3 and 4. The last line in place of the shell, so that ending the process ends the browser.
        let line = "exec chromium --headless --no-sandbox --disable-gpu --hide-scrollbars --remote-debugging-pipe about:blank 3<&0 4>&1";
        let mut command = Command::new("sh");
        command.args(["-c", line]).env("HOME", home.path()).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut process = command.spawn().unwrap();
        let (commands, answers) = (process.stdin.take().unwrap(), BufReader::new(process.stdout.take().unwrap()));
        let mut browser = Self { process, commands, answers, number: 0, session: None, _home: home };
        let page = browser.call("Target.createTarget", json!({ "url": "about:blank" }))["targetId"].clone();
        let attached = browser.call("Target.attachToTarget", json!({ "targetId": page, "flatten": true }));
        browser.session = Some(attached["sessionId"].as_str().unwrap().to_owned());
        browser
    }

    fn call(&mut self, method: &str, params: Value) -> Value {
        self.number += 1;
        let mut message = json!({ "id": self.number, "method": method, "params": params });
        if let Some(session) = &self.session {
            message["sessionId"] = json!(session);
        }
        self.commands.write_all(format!("{message}\0").as_bytes()).unwrap();
        loop {
            let mut bytes = Vec::new();
            let read = self.answers.read_until(0, &mut bytes).unwrap();
            assert!(read > 0, "the browser has ended; is `chromium` installed?");
            bytes.pop();
            let answer: Value = serde_json::from_slice(&bytes).unwrap();
            // Others are news of what happens in the page.
            if answer["id"] == self.number {
                assert!(answer.get("error").is_none(), "{method}: {answer}");
                return answer["result"].clone();
            }
        }
    }

    /// Opens a page and waits until it is there.
    pub fn open(&mut self, dashboard: &Dashboard, path: &str, screen: Screen) {
        let Screen { width, height, dark, phone } = screen;
        let sharpness = if phone { 1.5 } else { 1.0 };
        let metrics = json!({ "width": width, "height": height, "deviceScaleFactor": sharpness, "mobile": phone });
        self.call("Emulation.setDeviceMetricsOverride", metrics);
        let scheme = if dark { "dark" } else { "light" };
        self.call("Emulation.setEmulatedMedia", json!({ "features": [{ "name": "prefers-color-scheme", "value": scheme }] }));
        let address = format!("http://{}{path}", dashboard.address);
        self.call("Page.navigate", json!({ "url": address }));
        // The answer may come before the old page has gone.
        self.wait(&format!("location.href === {} && document.readyState === 'complete'", json!(address)));
    }

    /// The value of an expression.
    pub fn eval(&mut self, script: &str) -> Value {
        let answer = self.call("Runtime.evaluate", json!({ "expression": script, "returnByValue": true, "awaitPromise": true }));
        assert!(answer.get("exceptionDetails").is_none(), "{script}: {answer}");
        answer["result"]["value"].clone()
    }

    /// Waits until an expression is true.
    pub fn wait(&mut self, script: &str) {
        let began = std::time::Instant::now();
        while self.eval(script) != true {
            assert!(began.elapsed() < std::time::Duration::from_secs(60), "waited in vain for {script}");
            // The page's own clock: the browser has something else to do meanwhile.
            self.eval("new Promise((done) => setTimeout(done, 20))");
        }
    }

    /// Presses a key that has a name.
    pub fn press(&mut self, key: &str) {
        for kind in ["keyDown", "keyUp"] {
            self.call("Input.dispatchKeyEvent", json!({ "type": kind, "key": key, "code": key }));
        }
    }

    /// What is seen, as PNG.
    pub fn picture(&mut self) -> Vec<u8> {
        let data = self.call("Page.captureScreenshot", json!({ "format": "png", "optimizeForSpeed": false }));
        base64::engine::general_purpose::STANDARD.decode(data["data"].as_str().unwrap()).unwrap()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
