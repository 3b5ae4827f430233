"""The page at "/": a chat with the served model that shows what speculation does. There is no build step."""
