"""Page template, style and script of the HTML report."""
