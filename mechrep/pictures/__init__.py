"""Still pictures as SVG: figures and texts drawn from their own data, without a browser and without a script."""
