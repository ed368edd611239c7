import Type, { type Static, type TSchema } from 'typebox';

/**
 * Figures as data: what studies and looks at a model find. The command line draws them into SVG files
 * (shared/plot.ts), a server keeps them, and the dashboard draws them anew in its own size and colours.
 */

const closed = { additionalProperties: false } as const;
const orNull = <S extends TSchema>(schema: S) => Type.Union([schema, Type.Null()]);
const Text = Type.String({ maxLength: 500 });
/** Null: not known, or not finite; it is not drawn. */
const Value = orNull(Type.Number());

export const FIGURE_LIMITS = {
  /** The most figures of a report; more points of a chart, examples of a gallery and so on are not told. */
  figures: 48,
  series: 1_000,
  points: 2_000,
  cards: 100,
  axes: 24,
  lines: 1_000,
  classes: 64,
  /** Pixels of a side of a picture. */
  imageSide: 64,
} as const;

const PlotPointSchema = Type.Object(
  {
    x: Value,
    y: Value,
    /** Ends of an error bar in y. */
    low: Type.Optional(Value),
    high: Type.Optional(Value),
    /** What it is: told where one points at it. */
    label: Type.Optional(Text),
  },
  closed,
);
export type PlotPoint = Static<typeof PlotPointSchema>;

const SeriesSchema = Type.Object(
  {
    name: Text,
    points: Type.Array(PlotPointSchema, { maxItems: FIGURE_LIMITS.points }),
    /** Default: line. `curve`: one without its points. `band`: the area between low and high. */
    style: Type.Optional(
      Type.Union([
        Type.Literal('line'),
        Type.Literal('curve'),
        Type.Literal('dashed'),
        Type.Literal('scatter'),
        Type.Literal('band'),
        Type.Literal('bars'),
      ]),
    ),
    /** Index of the colour; default: the series' own. Lets a band share its line's. */
    color: Type.Optional(Type.Integer({ minimum: 0, maximum: 1_000 })),
  },
  closed,
);
export type Series = Static<typeof SeriesSchema>;

const AxisSchema = Type.Object(
  {
    label: Text,
    log: Type.Optional(Type.Boolean()),
    /** Values are shares, and written in percent. */
    percent: Type.Optional(Type.Boolean()),
    /** The value i stands for the i-th of these words, from 0. */
    names: Type.Optional(Type.Array(Text, { maxItems: 200 })),
  },
  closed,
);
export type Axis = Static<typeof AxisSchema>;

/** Lines, points, bars, error bars and bands over two axes. */
const ChartFigureSchema = Type.Object(
  {
    kind: Type.Literal('chart'),
    title: Text,
    x: AxisSchema,
    y: AxisSchema,
    series: Type.Array(SeriesSchema, { maxItems: FIGURE_LIMITS.series }),
    /** Places of x that matter, as a line with a word. */
    marks: Type.Optional(
      Type.Array(Type.Object({ x: Type.Number(), text: Text }, closed), { maxItems: 20 }),
    ),
  },
  closed,
);
export type ChartFigure = Static<typeof ChartFigureSchema>;

/** One axis for each hyperparameter and one line for each trial. */
const ParallelFigureSchema = Type.Object(
  {
    kind: Type.Literal('parallel'),
    title: Text,
    axes: Type.Array(
      Type.Object(
        {
          label: Text,
          /** Written beside the axis; a place is from 0 (below) to 1 (above). */
          ticks: Type.Array(Type.Object({ place: Type.Number(), text: Text }, closed), {
            maxItems: 50,
          }),
        },
        closed,
      ),
      { maxItems: FIGURE_LIMITS.axes },
    ),
    lines: Type.Array(
      Type.Object(
        {
          label: Text,
          /** One for each axis; null: it has none, and the line passes by in the middle. */
          places: Type.Array(Value, { maxItems: FIGURE_LIMITS.axes }),
          /** From 0, the best, to 1, the worst: its colour, and the order of drawing. */
          rank: Type.Number({ minimum: 0, maximum: 1 }),
        },
        closed,
      ),
      { maxItems: FIGURE_LIMITS.lines },
    ),
  },
  closed,
);
export type ParallelFigure = Static<typeof ParallelFigureSchema>;

/** Counts: true classes in rows, answers in columns. */
const MatrixFigureSchema = Type.Object(
  {
    kind: Type.Literal('matrix'),
    title: Text,
    names: Type.Array(Text, { maxItems: FIGURE_LIMITS.classes }),
    counts: Type.Array(
      Type.Array(Type.Integer({ minimum: 0 }), { maxItems: FIGURE_LIMITS.classes }),
      { maxItems: FIGURE_LIMITS.classes },
    ),
  },
  closed,
);
export type MatrixFigure = Static<typeof MatrixFigureSchema>;

/** How an example is shown. */
const ShownSchema = Type.Union([
  Type.Object(
    {
      kind: Type.Literal('image'),
      width: Type.Integer({ minimum: 1, maximum: FIGURE_LIMITS.imageSide }),
      height: Type.Integer({ minimum: 1, maximum: FIGURE_LIMITS.imageSide }),
      channels: Type.Union([Type.Literal(1), Type.Literal(3), Type.Literal(4)]),
      /** Row by row, 0 … 255, as base64. */
      pixels: Type.String({
        pattern: '^[A-Za-z0-9+/]*={0,2}$',
        maxLength: Math.ceil((4 * FIGURE_LIMITS.imageSide ** 2 * 4) / 3) + 4,
      }),
    },
    closed,
  ),
  Type.Object({ kind: Type.Literal('text'), text: Text }, closed),
]);

/** An example with what a model says of it. */
export const CardSchema = Type.Object(
  {
    shown: ShownSchema,
    /** Lines below it. */
    caption: Type.Array(Text, { maxItems: 6 }),
    /** Framed in another colour. */
    wrong: Type.Boolean(),
  },
  closed,
);
export type Card = Static<typeof CardSchema>;

/** Examples with what a model says of them. */
const GalleryFigureSchema = Type.Object(
  {
    kind: Type.Literal('gallery'),
    title: Text,
    cards: Type.Array(CardSchema, { maxItems: FIGURE_LIMITS.cards }),
  },
  closed,
);
export type GalleryFigure = Static<typeof GalleryFigureSchema>;

/** What each threshold of confidence gives: shares of the examples that are answered, and of those that are right. */
const ThresholdsFigureSchema = Type.Object(
  {
    kind: Type.Literal('thresholds'),
    title: Text,
    /** Coverage rises, the threshold falls. */
    points: Type.Array(
      Type.Object(
        { threshold: Type.Number(), coverage: Type.Number(), accuracy: Type.Number() },
        closed,
      ),
      { maxItems: FIGURE_LIMITS.points },
    ),
    /** Those of the table, measured on examples that they were not chosen on. */
    choices: SeriesSchema,
  },
  closed,
);
export type ThresholdsFigure = Static<typeof ThresholdsFigureSchema>;

export const FigureSchema = Type.Union([
  ChartFigureSchema,
  ParallelFigureSchema,
  MatrixFigureSchema,
  GalleryFigureSchema,
  ThresholdsFigureSchema,
]);
/** A figure that travels. */
export type Figure = Static<typeof FigureSchema>;
