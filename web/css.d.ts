/** The bundler takes style sheets from the modules that import them. */
declare module '*.css';
