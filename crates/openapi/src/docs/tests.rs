use super::{IndexEntry, IndexStatus, asset, docs_page, index_page};

const EVIL: &str = r#"<script>alert("x")</script>'&"#;

#[test]
fn nothing_of_a_servers_text_becomes_markup() {
    let entry = IndexEntry {
        name: EVIL,
        title: Some(EVIL),
        status: IndexStatus::Failed { reason: EVIL },
        url: EVIL,
    };
    for page in [docs_page(EVIL, EVIL, EVIL), index_page(&[entry])] {
        assert!(!page.contains("<script>"), "{page}");
        assert!(!page.contains("alert(\""));
        assert!(page.contains("&lt;script&gt;alert(&quot;x&quot;)&lt;/script&gt;&#39;&amp;"));
    }
}

#[test]
fn every_asset_of_the_page_is_in_the_binary() {
    let page = docs_page("Excel", "openapi.json", "../../docs/assets");
    let names: Vec<&str> = page
        .split("../../docs/assets/")
        .skip(1)
        .filter_map(|rest| rest.split('"').next())
        .collect();
    assert_eq!(
        names,
        [
            "favicon-32x32.png",
            "swagger-ui.css",
            "swagger-ui-bundle.js",
            "start.js"
        ]
    );
    for name in names {
        let (kind, bytes) = asset(name).unwrap_or_else(|| panic!("{name} is missing"));
        assert!(!bytes.is_empty());
        let expected = match name.rsplit('.').next() {
            Some("js") => "text/javascript",
            Some("css") => "text/css",
            _ => "image/png",
        };
        assert!(kind.starts_with(expected), "{name}: {kind}");
    }
}

#[test]
fn only_named_assets_are_served() {
    for path in [
        "",
        "/",
        "index.html",
        "../start.js",
        "swagger-initializer.js",
        "start.js/",
    ] {
        assert!(asset(path).is_none(), "{path}");
    }
}

#[test]
fn the_pages_load_nothing_from_elsewhere() {
    let entry = IndexEntry {
        name: "excel",
        title: None,
        status: IndexStatus::Starting,
        url: "mcpo/excel",
    };
    for page in [
        docs_page("Excel", "openapi.json", "../docs/assets"),
        index_page(&[entry]),
    ] {
        assert!(!page.contains("//"), "{page}");
        assert!(
            !page.contains("=\"/"),
            "an absolute path breaks under a prefix: {page}"
        );
    }
}

#[test]
fn the_index_tells_how_each_server_is() {
    let entry = |name, status| IndexEntry {
        name,
        title: Some("Title"),
        status,
        url: "mcpo/x",
    };
    insta::assert_snapshot!(index_page(&[
        entry("time", IndexStatus::Ready { tools: 1 }),
        entry("excel", IndexStatus::Ready { tools: 14 }),
        entry("slow", IndexStatus::Starting),
        entry(
            "dead",
            IndexStatus::Failed {
                reason: "uvx: not found"
            }
        ),
    ]));
    assert!(index_page(&[]).contains("No servers"));
}
