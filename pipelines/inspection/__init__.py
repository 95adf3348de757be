"""What a stage's shards hold, for a person: `chunk_view` gathers a chunk with what every candidate said of it, `gate`
whom a method listens to; `chunk_lines` shows it in a terminal, `chunk_page` as a page.
"""
