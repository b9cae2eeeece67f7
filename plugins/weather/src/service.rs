//! What OpenWeatherMap is asked, and what it answers.

use serde::Deserialize;
use serde_json::Value;
use trainer_plugin_sdk::http::{Request, Response, escape};

use crate::Settings;

/// The longest words of the service that are passed on, in characters.
const LONGEST_MESSAGE: usize = 200;

/// The units of the temperature, as the service names them.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Units {
    /// Celsius.
    Metric,
    /// Fahrenheit.
    Imperial,
    /// Kelvin.
    Standard,
}

impl Units {
    /// As in a request, and the name of the temperature in the result.
    fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::Metric => ("metric", "temp_c"),
            Self::Imperial => ("imperial", "temp_f"),
            Self::Standard => ("standard", "temp_k"),
        }
    }
}

/// What the model gets.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Form {
    /// Place, weather and temperature.
    Short,
    /// The whole answer.
    Full,
}

/// The part of an answer that is used.
#[derive(Deserialize)]
struct Answer {
    name: String,
    weather: Vec<Condition>,
    main: Main,
}

#[derive(Deserialize)]
struct Condition {
    description: String,
}

#[derive(Deserialize)]
struct Main {
    temp: f64,
}

/// The question: <https://openweathermap.org/current>, by the name of a city.
pub fn request(settings: &Settings, place: &str, key: &str) -> Request {
    let base = settings.base_url.trim_end_matches('/');
    let (units, lang) = (settings.units.names().0, escape(&settings.lang));
    let url = format!("{base}/data/2.5/weather?q={}&appid={}&units={units}&lang={lang}", escape(place), escape(key));
    Request::get(url).header("accept", "application/json")
}

/// The tool's result, or its error.
///
/// # Errors
/// The service refuses, or does not answer as its documentation says.
pub fn read(settings: &Settings, place: &str, response: &Response) -> Result<String, String> {
    let body = std::str::from_utf8(&response.body).map_err(|_| "the weather service answered with bytes that are no text".to_owned())?;
    if !response.ok() {
        return Err(refusal(response.status, place, body));
    }
    let strange = |why: &dyn std::fmt::Display| format!("the weather service's answer is not as documented: {why}");
    if settings.result == Form::Full {
        return serde_json::from_str::<Value>(body).map(|_| body.trim().to_owned()).map_err(|e| strange(&e));
    }
    let answer: Answer = serde_json::from_str(body).map_err(|e| strange(&e))?;
    let condition = answer.weather.first().ok_or_else(|| strange(&"it names no weather"))?;
    let name = if answer.name.is_empty() { place } else { &answer.name };
    let (_, temperature) = settings.units.names();
    Ok(format!(
        "{{\"location\": {}, \"weather\": {}, \"{temperature}\": {}}}",
        Value::from(name),
        Value::from(condition.description.as_str()),
        // One decimal, as a thermometer shows it; whole degrees without one, and no negative zero.
        (answer.main.temp * 10.0).round() / 10.0 + 0.0
    ))
}

/// What the service refuses, in words that the model can do something with.
fn refusal(status: u16, place: &str, body: &str) -> String {
    let message = serde_json::from_str::<Value>(body).ok();
    let message = message.as_ref().and_then(|v| v.get("message")).and_then(Value::as_str).unwrap_or_default();
    let message: String = message.chars().filter(|c| !c.is_control()).take(LONGEST_MESSAGE).collect();
    match status {
        404 => format!("the weather service knows no city {place:?}"),
        401 | 403 => format!("the weather service refuses the API key ({status}): {message}"),
        429 => format!("the weather service was asked too often ({status}): {message}"),
        _ => format!("the weather service answered with status {status}: {message}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BODY: &str = r#"{"coord":{"lon":118.78,"lat":32.06},"weather":[{"id":803,"main":"Clouds","description":"broken clouds","icon":"04d"}],
        "base":"stations","main":{"temp":31.96,"feels_like":35.1,"pressure":1006},"name":"Nanjing","cod":200}"#;

    fn settings(json: &str) -> Settings {
        serde_json::from_str(json).unwrap()
    }

    fn answer(settings: &Settings, status: u16, body: &str) -> Result<String, String> {
        read(settings, "Nanjing", &Response { status, headers: Vec::new(), body: body.as_bytes().to_vec() })
    }

    #[test]
    fn the_question() {
        let request =
            request(&settings(r#"{"base_url": "http://127.0.0.1:8080/", "lang": "zh_cn"}"#), "São Paulo&appid=x", "trainer_secret_0a");
        assert_eq!(
            request.url,
            "http://127.0.0.1:8080/data/2.5/weather?q=S%C3%A3o%20Paulo%26appid%3Dx&appid=trainer_secret_0a&units=metric&lang=zh_cn"
        );
        assert_eq!(request.method, "GET");
    }

    #[test]
    fn answers() {
        let default = Settings::default();
        assert_eq!(answer(&default, 200, BODY).unwrap(), r#"{"location": "Nanjing", "weather": "broken clouds", "temp_c": 32}"#);
        let other = settings(r#"{"units": "imperial"}"#);
        assert!(answer(&other, 200, &BODY.replace("31.96", "-0.04")).unwrap().ends_with(r#""temp_f": 0}"#));
        assert!(answer(&other, 200, &BODY.replace("31.96", "71.25")).unwrap().ends_with(r#""temp_f": 71.3}"#));
        let full = settings(r#"{"result": "full"}"#);
        assert_eq!(answer(&full, 200, BODY).unwrap(), BODY);
        let quoted = BODY.replace("\"Nanjing\"", r#""a \" b""#);
        assert!(answer(&default, 200, &quoted).unwrap().starts_with(r#"{"location": "a \" b""#));
    }

    #[test]
    fn refusals_and_nonsense() {
        let default = Settings::default();
        for (status, body, golden) in [
            (401, r#"{"cod":401, "message": "Invalid API key."}"#, "the weather service refuses the API key (401): Invalid API key."),
            (404, r#"{"cod":"404","message":"city not found"}"#, "the weather service knows no city \"Nanjing\""),
            (429, "{}", "the weather service was asked too often (429): "),
            (500, "<html>", "the weather service answered with status 500: "),
            (
                200,
                r#"{"name":"X","weather":[],"main":{"temp":1}}"#,
                "the weather service's answer is not as documented: it names no weather",
            ),
        ] {
            assert_eq!(answer(&default, status, body).unwrap_err(), golden);
        }
        assert!(answer(&default, 200, "[]").unwrap_err().starts_with("the weather service's answer is not as documented: "));
        assert!(answer(&settings(r#"{"result": "full"}"#), 200, "<html>").is_err());
        let long = serde_json::json!({ "message": format!("\u{1b}[2J{}", "x".repeat(1000)) }).to_string();
        assert_eq!(answer(&default, 500, &long).unwrap_err().chars().count(), "the weather service answered with status 500: ".len() + 200);
        let bytes = Response { status: 200, headers: Vec::new(), body: vec![0xff] };
        assert!(read(&default, "X", &bytes).unwrap_err().contains("no text"));
    }
}
