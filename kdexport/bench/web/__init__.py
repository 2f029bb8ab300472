"""Models measured in a browser: onnxruntime-web in a page, behind the same plan and runner as every other device."""
