"""What people and machines read of one run: terminal, JSON, JUnit XML, Markdown, and one HTML page.

All of them render a `Run` (`run`), which a JSON file holds completely: a saved run can be rendered again in any form.
`terminal` prints, `document` is the JSON, `junit`, `markdown` and `page` return text; `curves` draws the page's charts.
"""
