"""An avatar in the browser: turn it, move its face, play its sequences beside the photos."""
